//! Ops that change how a value is seen, not what it is.

use super::{OpRule, arity};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Graph, Result, Type};

/// Output `index` (1 and up) of its input node. [`Graph::push`] infers its type, since only it sees the producer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Which output.
    pub index: u8,
}

impl OpRule for Part {
    fn name(&self) -> &'static str {
        "part"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.part(self.index)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        cx.add_part(self.index, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// A parameter as a dense f32 value: dequantized where the storage is quantized.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Read;

impl OpRule for Read {
    fn name(&self) -> &'static str {
        "read"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).clone()])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        cx.add(0, d)
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// The same value, through which no gradient flows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StopGrad;

impl OpRule for StopGrad {
    fn name(&self) -> &'static str {
        "stop-grad"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).clone()])
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}
