//! Loss plugins: what they need, and a scalar from heads and fields.

use swift_graph::{DType, Graph, NodeId, Type};

use crate::Result;
use crate::bindings::guest;
use crate::check;
use crate::decl::{BatchBinding, Head, Kind};
use crate::guest::Guest;
use crate::load::Plugin;
use crate::trace::{Loan, Role};
use crate::tuner::expect;

/// What a loss needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Dataset columns beside the well-known ones.
    pub fields: Vec<String>,
    /// A reference model.
    pub reference: bool,
    /// A teacher model.
    pub teacher: bool,
    /// Chosen and rejected answers.
    pub paired: bool,
    /// Rights.
    pub grants: Vec<String>,
}

/// What a loss gives.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput {
    /// The scalar to minimise.
    pub loss: NodeId,
    /// Named scalars to report.
    pub metrics: Vec<(String, NodeId)>,
}

/// An instance of a loss plugin.
pub struct LossGuest {
    guest: Guest,
    typed: guest::loss::Guest,
}

impl Plugin {
    /// A loss guest.
    ///
    /// # Errors
    /// When the plugin is no loss or cannot be instantiated.
    pub fn loss(&self) -> Result<LossGuest> {
        let (guest, typed) =
            self.guest(Kind::Loss, guest::loss::GuestIndices::new, |i, store, instance| i.load(store, instance))?;
        Ok(LossGuest { guest, typed })
    }
}

impl LossGuest {
    /// What the loss needs under a configuration.
    ///
    /// # Errors
    /// When the plugin refuses the configuration or answers with nonsense.
    pub fn needs(&mut self, config: &str) -> Result<Needs> {
        const FUNCTION: &str = "loss.needs-for";
        let typed = &self.typed;
        let n = self.guest.ask(FUNCTION, |store| typed.call_needs_for(store, config))?;
        let limits = self.guest.limits();
        let names = n.fields.iter().chain(&n.grants);
        let fine = check::count("fields and grants", n.fields.len() + n.grants.len(), "params", limits.params)
            .and_then(|()| names.clone().try_for_each(|f| check::name("field", f, limits)))
            .and_then(|()| check::distinct("field", n.fields.iter().map(String::as_str)));
        fine.map_err(|message| self.guest.answer(FUNCTION, message))?;
        Ok(Needs { fields: n.fields, reference: n.reference, teacher: n.teacher, paired: n.paired, grants: n.grants })
    }

    /// Appends the loss to the graph of the models' forward passes.
    ///
    /// # Errors
    /// When the plugin fails or answers with anything but f32 scalars. The graph is then fit for dropping only.
    pub fn trace(&mut self, g: &mut Graph, batch: &BatchBinding, config: &str) -> Result<LossOutput> {
        const FUNCTION: &str = "loss.trace";
        let typed = &self.typed;
        // Heads are numbered policy, reference, teacher, without gaps.
        let heads: Vec<Head> =
            [Some(&batch.policy), batch.reference.as_ref(), batch.teacher.as_ref()].into_iter().flatten().cloned().collect();
        let reference = batch.reference.as_ref().map(|_| 1);
        let teacher = batch.teacher.as_ref().map(|_| heads.len() as u32 - 1);
        let role = Role::Batch { fields: batch.fields.clone(), totals: batch.totals.clone(), reference, teacher };
        let scalar = Type::scalar(DType::F32);
        let output = self.guest.traced(
            FUNCTION,
            g,
            Loan { role, heads, training: true },
            |store, lent| typed.call_trace(store, lent.root(), lent.root(), config),
            |trace, output| {
                let loss = expect(trace, &output.loss, &scalar, "the loss")?;
                let mut metrics = Vec::with_capacity(output.metrics.len());
                for (name, value) in output.metrics {
                    let node = expect(trace, &value, &scalar, &format!("metric `{name}`"))?;
                    metrics.push((name, node));
                }
                Ok(LossOutput { loss, metrics })
            },
        )?;
        let limits = self.guest.limits();
        let fine = check::count("metrics", output.metrics.len(), "params", limits.params)
            .and_then(|()| output.metrics.iter().try_for_each(|(n, _)| check::name("metric", n, limits)))
            .and_then(|()| check::distinct("metric", output.metrics.iter().map(|(n, _)| n.as_str())));
        fine.map_err(|message| self.guest.answer(FUNCTION, message))?;
        Ok(output)
    }

    /// Name of the plugin.
    pub fn plugin(&self) -> &str {
        self.guest.plugin()
    }
}
