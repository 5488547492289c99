//! Named weight storage.

use std::rc::Rc;

use crate::bindings::swift::tensor::graph as raw;
use crate::{Dim, Value};

/// A parameter in whatever format the host keeps it. It takes part in formulas like a [`Value`]; [`Value::linear`] takes it as it is,
/// so that a quantized weight stays quantized.
#[derive(Clone)]
pub struct Param(pub(crate) Option<Rc<raw::Param>>);

impl Param {
    pub(crate) fn new(found: Option<raw::Param>) -> Param {
        Param(found.map(Rc::new))
    }

    /// The dense view.
    pub fn read(&self) -> Value {
        match &self.0 {
            Some(p) => Value::record(|g| p.read(g)),
            None => Value::failed(),
        }
    }

    /// Its shape.
    pub fn shape(&self) -> Vec<Dim> {
        self.0.as_ref().map_or_else(Vec::new, |p| p.shape())
    }

    /// [`Value::matmul`] of the dense view.
    #[must_use]
    pub fn matmul(&self, other: impl Into<Value>) -> Value {
        self.read().matmul(other)
    }
}

/// The projection that [`Value::linear`] multiplies by: a parameter, or a computed matrix.
pub trait Weight {
    /// `x · Wᵀ`.
    fn project(&self, x: &Value) -> Value;
}

impl Weight for Param {
    fn project(&self, x: &Value) -> Value {
        match &self.0 {
            Some(w) => x.map(|g, x| g.linear(w, None, x)),
            None => Value::failed(),
        }
    }
}

impl Weight for Value {
    fn project(&self, x: &Value) -> Value {
        x.matmul_transposed(self)
    }
}
