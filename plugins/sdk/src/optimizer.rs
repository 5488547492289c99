//! Optimizers: the new weight from gradient, weight and slots. The host keeps the slots and runs the programs.

use std::marker::PhantomData;

use crate::bindings::export_world;
use crate::bindings::swift::plugin::trace_host as raw;
use crate::bindings::swift::tensor::graph as raw_graph;
use crate::{Config, Dtype, ParamInfo, Result, Value, enter, trace};

export_world!(
    traced "package swift:sdk-optimizer; world optimizer { export swift:plugin/optimizer@0.1.0; }",
    "swift:sdk-optimizer/optimizer",
    "swift_sdk::optimizer",
    "__export_optimizer"
);

use exports::swift::plugin::optimizer::{Guest, Plan, Program, SlotDecl};

/// Name of the program that most optimizers have alone.
pub const UPDATE: &str = "update";

/// An optimizer.
pub trait Optimizer: Config {
    /// Refuses values that make no sense together or out of range.
    ///
    /// # Errors
    /// With what is wrong and what would be right.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Slots and programs for one parameter.
    fn plan(&self, param: &ParamInfo) -> OptimizerPlan;

    /// The new weight; none for a program that only writes slots.
    fn trace(&self, program: &str, step: &Step) -> Option<Value>;

    /// Factor of the learning rate at a step (from 1) of `total`; none leaves it to the host's schedules.
    fn schedule(&self, _step: &Value, _total: &Value) -> Option<Value> {
        None
    }
}

/// Slots and programs for one parameter.
#[derive(Clone, Default)]
pub struct OptimizerPlan {
    slots: Vec<SlotDecl>,
    programs: Vec<Program>,
}

impl OptimizerPlan {
    /// No slots, and one program, [`UPDATE`], unless others are added.
    pub fn new() -> OptimizerPlan {
        OptimizerPlan::default()
    }

    /// Adds an f32 tensor that starts at zero and survives steps.
    #[must_use]
    pub fn slot(mut self, name: &str, shape: &[u64]) -> OptimizerPlan {
        self.slots.push(SlotDecl { name: name.into(), shape: shape.to_vec(), dtype: Dtype::F32, quantised: false });
        self
    }

    /// As [`OptimizerPlan::slot`], kept in 8 bits where it is large: what is kept is rounded. `positive` slots never hold a number
    /// below zero, which makes the rounding finer.
    #[must_use]
    pub fn rounded_slot(mut self, name: &str, shape: &[u64], positive: bool) -> OptimizerPlan {
        let dtype = if positive { Dtype::U8 } else { Dtype::S8 };
        self.slots.push(SlotDecl { name: name.into(), shape: shape.to_vec(), dtype, quantised: true });
        self
    }

    /// Adds a program that runs on steps divisible by `every`, after those added before.
    #[must_use]
    pub fn program(mut self, name: &str, every: u32) -> OptimizerPlan {
        self.programs.push(Program { name: name.into(), every });
        self
    }
}

/// One parameter's update.
pub struct Step<'a> {
    raw: &'a raw::StepIo,
}

impl Step<'_> {
    /// The parameter.
    pub fn info(&self) -> ParamInfo {
        self.raw.info()
    }

    /// Its gradient, already clipped.
    pub fn grad(&self) -> Value {
        Value::own(self.raw.grad())
    }

    /// Its weight.
    pub fn weight(&self) -> Value {
        Value::own(self.raw.weight())
    }

    /// A slot's content before this step.
    pub fn slot(&self, name: &str) -> Value {
        Value::record(|g| self.raw.slot(name)?.read(g))
    }

    /// Sets a slot for the next step, and gives the value back.
    pub fn keep(&self, name: &str, value: Value) -> Value {
        if let Some(raw) = value.clone().into_raw() {
            trace::record(|g| self.raw.slot(name)?.write(g, &raw));
        }
        value
    }

    /// Learning rate.
    pub fn lr(&self) -> Value {
        self.scalar("lr")
    }

    /// Number of this step, from 1.
    pub fn number(&self) -> Value {
        self.scalar("step")
    }

    /// Weight decay.
    pub fn weight_decay(&self) -> Value {
        self.scalar("weight-decay")
    }

    /// An f32 scalar of the host by name.
    pub fn scalar(&self, name: &str) -> Value {
        Value::record(|_| self.raw.scalar(name))
    }
}

#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

fn parse<T: Optimizer>(config: &str) -> Result<T> {
    enter();
    let optimizer = T::parse(config)?;
    optimizer.check()?;
    Ok(optimizer)
}

impl<T: Optimizer> Guest for Exported<T> {
    fn plan_for(config: String, p: ParamInfo) -> Result<Plan> {
        let OptimizerPlan { slots, mut programs } = parse::<T>(&config)?.plan(&p);
        if programs.is_empty() {
            programs.push(Program { name: UPDATE.into(), every: 1 });
        }
        Ok(Plan { slots, programs })
    }

    fn trace(g: &raw_graph::Builder, program: String, io: &raw::StepIo, config: String) -> Result<Option<raw_graph::Value>> {
        let optimizer = parse::<T>(&config)?;
        trace::run(g, || optimizer.trace(&program, &Step { raw: io }).and_then(Value::into_raw))
    }

    fn schedule(
        g: &raw_graph::Builder,
        step: &raw_graph::Value,
        total: &raw_graph::Value,
        config: String,
    ) -> Result<Option<raw_graph::Value>> {
        let optimizer = parse::<T>(&config)?;
        trace::run(g, || optimizer.schedule(&Value::own(step.dup()), &Value::own(total.dup())).and_then(Value::into_raw))
    }
}
