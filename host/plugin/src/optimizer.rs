//! Optimizer plugins: slots and programs per parameter, and the update as a graph.

use swift_graph::{DType, Graph, NodeId, Type};

use crate::Result;
use crate::bindings::guest;
use crate::check;
use crate::decl::{Kind, ParamInfo, StepBinding, dtype_in};
use crate::guest::Guest;
use crate::load::Plugin;
use crate::trace::{Loan, Role};
use crate::tuner::expect;

/// A tensor that an optimizer keeps per parameter; it starts at zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotDecl {
    /// Name.
    pub name: String,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Element type. Values are f32 whatever it says; with `quantised`, u8 says that none is negative.
    pub dtype: DType,
    /// Whether 8 bits are enough.
    pub quantised: bool,
}

/// An update program and its calendar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name.
    pub name: String,
    /// Runs on steps divisible by this.
    pub every: u32,
}

/// What an optimizer does with one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptimizerPlan {
    /// Slots.
    pub slots: Vec<SlotDecl>,
    /// Programs, in the order they run.
    pub programs: Vec<Program>,
}

/// An instance of an optimizer plugin.
pub struct OptimizerGuest {
    guest: Guest,
    typed: guest::optimizer::Guest,
}

impl Plugin {
    /// An optimizer guest.
    ///
    /// # Errors
    /// When the plugin is no optimizer or cannot be instantiated.
    pub fn optimizer(&self) -> Result<OptimizerGuest> {
        let (guest, typed) =
            self.guest(Kind::Optimizer, guest::optimizer::GuestIndices::new, |i, store, instance| i.load(store, instance))?;
        Ok(OptimizerGuest { guest, typed })
    }
}

impl OptimizerGuest {
    /// Slots and programs for one parameter.
    ///
    /// # Errors
    /// When the plugin refuses the configuration or answers with nonsense.
    pub fn plan(&mut self, config: &str, param: &ParamInfo) -> Result<OptimizerPlan> {
        let typed = &self.typed;
        let plan = self.guest.ask("optimizer.plan-for", |store| typed.call_plan_for(store, config, &param.into()))?;
        let slot = |s: guest::optimizer::SlotDecl| SlotDecl {
            name: s.name,
            shape: s.shape,
            dtype: dtype_in(s.dtype),
            quantised: s.quantised,
        };
        let plan = OptimizerPlan {
            slots: plan.slots.into_iter().map(slot).collect(),
            programs: plan.programs.into_iter().map(|p| Program { name: p.name, every: p.every }).collect(),
        };
        self.check(&plan).map_err(|message| self.guest.answer("optimizer.plan-for", message))?;
        Ok(plan)
    }

    fn check(&self, plan: &OptimizerPlan) -> Result<(), String> {
        let limits = self.guest.limits();
        check::count("slots", plan.slots.len(), "params", limits.params)?;
        check::count("programs", plan.programs.len(), "params", limits.params)?;
        check::distinct("slot", plan.slots.iter().map(|s| s.name.as_str()))?;
        check::distinct("program", plan.programs.iter().map(|p| p.name.as_str()))?;
        for slot in &plan.slots {
            check::name("slot", &slot.name, limits)?;
            check::shape(&slot.name, &slot.shape, limits)?;
        }
        for program in &plan.programs {
            check::name("program", &program.name, limits)?;
            if program.every == 0 {
                return Err(format!("program `{}` runs every 0 steps", program.name));
            }
        }
        if plan.programs.is_empty() { Err("it has no program".into()) } else { Ok(()) }
    }

    /// Appends one program; slot writes become effects of the graph. Gives the new weight's node, or none.
    ///
    /// # Errors
    /// When the plugin fails or the new weight has another shape. The graph is then fit for dropping only.
    pub fn trace(&mut self, g: &mut Graph, program: &str, step: &StepBinding, config: &str) -> Result<Option<NodeId>> {
        let typed = &self.typed;
        let want = g.ty(step.weight).clone();
        self.guest.traced(
            "optimizer.trace",
            g,
            Loan::new(Role::Step(Box::new(step.clone())), true),
            |store, lent| typed.call_trace(store, lent.root(), program, lent.root(), config),
            |trace, value| value.map(|v| expect(trace, &v, &want, "the new weight")).transpose(),
        )
    }

    /// Appends the learning-rate factor from the scalars `step` and `total`; none: the host's own schedule.
    ///
    /// # Errors
    /// When the plugin fails or the factor is no scalar. The graph is then fit for dropping only.
    pub fn schedule(&mut self, g: &mut Graph, step: NodeId, total: NodeId, config: &str) -> Result<Option<NodeId>> {
        let typed = &self.typed;
        let want = Type::scalar(DType::F32);
        self.guest.traced(
            "optimizer.schedule",
            g,
            Loan::new(Role::Values, true),
            |store, lent| typed.call_schedule(store, lent.root(), lent.value(step), lent.value(total), config),
            |trace, value| value.map(|v| expect(trace, &v, &want, "the factor")).transpose(),
        )
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}
