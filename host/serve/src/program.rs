//! A compiled graph without gradients, and what of it depends on weights alone.

use swift_graph::passes::{self, Options};
use swift_graph::{Bindings, Graph, ParamId, plan};
use swift_runtime::{Device, Executable, Inputs, Store};

use crate::Result;

/// A graph whose weights stand still while it runs. Everything that depends on weights alone (DoRA's norms, say) is computed by
/// [`Program::refresh`] and not in every run.
pub struct Program {
    prologue: Option<Box<dyn Executable>>,
    /// What runs each time.
    pub main: Box<dyn Executable>,
}

impl Program {
    /// Optimizes, plans and compiles `g`.
    ///
    /// # Errors
    /// When a pass or the device fails.
    pub fn compile(device: &dyn Device, store: &Store, mut g: Graph) -> Result<Program> {
        for id in 0..g.params().len() as u32 {
            g.set_trainable(ParamId(id), false);
        }
        let (main, prologue) = passes::fold_frozen(&passes::before_autodiff(&g)?)?;
        let prologue = prologue.map(|g| compile(device, store, g)).transpose()?;
        Ok(Program { prologue, main: compile(device, store, main)? })
    }

    /// Computes again what depends on weights alone; to be called after weights have changed and before a series of runs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn refresh(&mut self, store: &mut Store) -> Result<()> {
        if let Some(prologue) = &mut self.prologue {
            prologue.run(store, &Bindings::new(), &Inputs::new())?;
        }
        Ok(())
    }
}

/// Optimizes, plans and compiles a graph as it is.
///
/// # Errors
/// When a pass or the device fails.
pub fn compile(device: &dyn Device, store: &Store, g: Graph) -> Result<Box<dyn Executable>> {
    let g = passes::optimize(g, &Options::default())?;
    let names: Vec<String> = g.params().iter().map(|p| p.name.clone()).collect();
    let plan = plan::plan(g, &|p| store.is_dense(&names[p.index()]))?;
    Ok(device.compile(plan)?)
}
