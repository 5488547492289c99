//! `silu(gate) · up` (Shazeer 2020), made from its elementwise spelling by a pattern.

use super::{OpRule, UnaryOp, arity, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Error, Graph, Result, Type};

/// Inputs `gate`, `up`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SwiGlu;

fn same(op: &'static str, inputs: &[Type]) -> Result<()> {
    floats(op, inputs)?;
    if inputs.windows(2).all(|w| w[0] == w[1]) { Ok(()) } else { Err(Error::shape(op, "all inputs have one type", inputs)) }
}

impl OpRule for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        same(self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).zip(cx.input(1), |g, u| UnaryOp::Silu.eval(g) * u)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let d_gate = cx.g.push(SwiGluBackward, &[cx.input(0), cx.input(1), d])?;
        if cx.needs(1) {
            let d_up = cx.g.part(d_gate, 1)?;
            cx.add(1, d_up)?;
        }
        cx.add(0, d_gate)
    }
}

/// Inputs `gate`, `up`, `d_out`; outputs `d_gate`, `d_up`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SwiGluBackward;

impl OpRule for SwiGluBackward {
    fn name(&self) -> &'static str {
        "swiglu-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        same(self.name(), inputs)?;
        Ok(vec![inputs[0].clone(), inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (gate, up, d) = (cx.input(0), cx.input(1), cx.input(2));
        let slope = gate.map(|g| {
            let s = UnaryOp::Sigmoid.eval(g);
            s * (1.0 + g * (1.0 - s))
        });
        let d_gate = slope.zip(up, |s, u| s * u).zip(d, |s, d| s * d);
        let d_up = gate.map(|g| UnaryOp::Silu.eval(g)).zip(d, |s, d| s * d);
        Ok(vec![d_gate, d_up])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }
}
