//! What a device is: a compiler of plans, and the executables that it makes.

use std::collections::HashMap;

use swift_graph::Bindings;
use swift_graph::plan::Plan;

use crate::{Error, HostTensor, Profile, Result, Store};

/// Something that can run plans. A device compiles whole plans, never single ops, so that it may fuse, capture and reorder as it
/// likes.
pub trait Device: Send + Sync {
    /// What the device is, for people.
    fn describe(&self) -> DeviceInfo;

    /// Makes a plan runnable.
    ///
    /// # Errors
    /// When the plan uses what the device does not support.
    fn compile(&self, plan: Plan) -> Result<Box<dyn Executable>>;

    /// An empty store of weights and states in the device's memory.
    fn store(&self) -> Store;

    /// Bytes that kernels keep for their work besides the arena; an estimate.
    fn working_bytes(&self) -> usize;

    /// Bytes of the arena, which all executables of the device share, as large as the largest run so far needed.
    fn arena_bytes(&self) -> usize;
}

/// A compiled plan. It keeps nothing between runs but caches: all data are in the store.
pub trait Executable: Send {
    /// What is run.
    fn plan(&self) -> &Plan;

    /// Runs the plan once: reads inputs, weights and states, carries out the effects and returns the named outputs. States that the
    /// plan names and the store lacks are made, zeroed.
    ///
    /// # Errors
    /// When an input is missing or has another shape than `bindings` say, a stored tensor does not fit, or an index is out of range.
    /// Effects of the launches before the failing one have happened.
    fn run(&mut self, store: &mut Store, bindings: &Bindings, inputs: &Inputs) -> Result<Outputs> {
        let mut outputs = Outputs::default();
        self.run_with(store, bindings, inputs, &mut |output| outputs.push(output.name, output.to_tensor()))?;
        Ok(outputs)
    }

    /// As [`Executable::run`], with the outputs lent to `read`, one after the other, instead of copied.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn run_with(
        &mut self,
        store: &mut Store,
        bindings: &Bindings,
        inputs: &Inputs,
        read: &mut dyn FnMut(OutputView<'_>),
    ) -> Result<()>;

    /// Chooses the arithmetic of products with frozen quantized weights, from the next run on; [`Precision::Exact`] until then.
    fn set_precision(&mut self, precision: Precision);

    /// Bytes of arena that a run with these bindings needs, without running. Weights and states are [`Store::bytes`].
    ///
    /// # Errors
    /// When a symbol is unbound or a size overflows.
    fn peak_bytes(&self, bindings: &Bindings) -> Result<usize>;

    /// Starts (with empty totals) or stops to measure launches.
    fn set_profiling(&mut self, on: bool);

    /// What was measured; `None` when profiling is off.
    fn profile(&self) -> Option<&Profile>;
}

/// Arithmetic of `x Wᵀ` where `W` is a frozen weight in a quantized format.
///
/// Either way such weights are repacked by the first run that multiplies with them and stay so in the store
/// ([`crate::StoreBytes::panels`]), beside their bytes (which a mapped file may drop from memory again).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// That of the decoded weight in f32: what training and evaluation use.
    #[default]
    Exact,
    /// Activations rounded to 8 bits within each 32 of a row, products in whole numbers: several times faster on many rows, and on one row
    /// bound by reading the weight. A row's result does not depend on the other rows of the batch. Error:
    /// [`swift_kernels::linear::int8`].
    ///
    /// Activations that several layers read one after the other, such as queries,
    /// keys and values, are rounded once. Gradients and formats that are not whole numbers times a scale stay exact.
    ///
    /// For generation: `let mut step = device.compile(plan)?; step.set_precision(Precision::Int8);`
    Int8,
}

/// A device, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Model, for example the processor's name.
    pub name: String,
    /// Threads that kernels run on.
    pub threads: usize,
    /// Instruction set that kernels use.
    pub isa: String,
    /// Memory of the device in bytes, if known.
    pub memory_total: Option<u64>,
    /// Of which available now.
    pub memory_available: Option<u64>,
}

/// Named inputs of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs {
    tensors: HashMap<String, HostTensor>,
}

impl Inputs {
    /// No input.
    pub fn new() -> Inputs {
        Inputs::default()
    }

    /// Adds or replaces one.
    #[must_use]
    pub fn with(mut self, name: &str, tensor: HostTensor) -> Inputs {
        self.set(name, tensor);
        self
    }

    /// Adds or replaces one in place. Inputs that the plan does not have are ignored.
    pub fn set(&mut self, name: &str, tensor: HostTensor) {
        match self.tensors.get_mut(name) {
            Some(slot) => *slot = tensor,
            None => drop(self.tensors.insert(name.to_string(), tensor)),
        }
    }

    /// One input, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut HostTensor> {
        self.tensors.get_mut(name)
    }

    /// One input.
    pub fn get(&self, name: &str) -> Option<&HostTensor> {
        self.tensors.get(name)
    }
}

/// A named result, where the device holds it.
#[derive(Clone, Copy, Debug)]
pub struct OutputView<'a> {
    /// Name.
    pub name: &'a str,
    /// Sizes.
    pub shape: &'a [usize],
    /// Row-major elements.
    pub data: Elements<'a>,
}

/// Elements of a result.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Floats and booleans.
    F32(&'a [f32]),
    /// Whole numbers.
    I32(&'a [i32]),
}

impl OutputView<'_> {
    /// A copy.
    pub fn to_tensor(&self) -> HostTensor {
        let shape = self.shape.to_vec();
        match self.data {
            Elements::F32(data) => HostTensor::F32 { shape, data: data.to_vec() },
            Elements::I32(data) => HostTensor::I32 { shape, data: data.to_vec() },
        }
    }
}

/// Named results of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    tensors: Vec<(String, HostTensor)>,
}

impl Outputs {
    pub(crate) fn push(&mut self, name: &str, tensor: HostTensor) {
        self.tensors.push((name.to_string(), tensor));
    }

    /// One result.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<&HostTensor> {
        self.iter().find(|(n, _)| *n == name).map(|(_, t)| t).ok_or_else(|| Error::missing("output", name))
    }

    /// One result, moved out.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn take(&mut self, name: &str) -> Result<HostTensor> {
        let at = self.tensors.iter().position(|(n, _)| n == name).ok_or_else(|| Error::missing("output", name))?;
        Ok(self.tensors.swap_remove(at).1)
    }

    /// A result of one float.
    ///
    /// # Errors
    /// When there is none of this name, or it is not a single float.
    pub fn scalar(&self, name: &str) -> Result<f32> {
        self.get(name)?.to_scalar()
    }

    /// All results, in the order of the graph's outputs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HostTensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }
}
