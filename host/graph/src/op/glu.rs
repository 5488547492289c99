//! Gated linear units `f(gate) · up` (Shazeer 2020), made from their elementwise spelling by a pattern.

use super::{OpRule, UnaryOp, arity, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Error, Graph, Result, Type};

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// SwiGLU.
    Silu,
    /// GeGLU with the tanh approximation.
    GeluTanh,
    /// GeGLU with the error function.
    GeluErf,
}

impl Gate {
    /// All of them.
    pub const ALL: [Gate; 3] = [Gate::Silu, Gate::GeluTanh, Gate::GeluErf];

    /// The function as an elementwise op.
    pub fn unary(self) -> UnaryOp {
        match self {
            Gate::Silu => UnaryOp::Silu,
            Gate::GeluTanh => UnaryOp::GeluTanh,
            Gate::GeluErf => UnaryOp::GeluErf,
        }
    }
}

/// Inputs `gate`, `up`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glu(pub Gate);

fn same(op: &'static str, inputs: &[Type]) -> Result<()> {
    floats(op, inputs)?;
    if inputs.windows(2).all(|w| w[0] == w[1]) { Ok(()) } else { Err(Error::shape(op, "all inputs have one type", inputs)) }
}

impl OpRule for Glu {
    fn name(&self) -> &'static str {
        "glu"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        same(self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).zip(cx.input(1), |g, u| self.0.unary().eval(g) * u)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        let d_gate = cx.g.push(GluBackward(self.0), &[cx.input(0), cx.input(1), d])?;
        if cx.needs(1) {
            let d_up = cx.g.part(d_gate, 1)?;
            cx.add(1, d_up)?;
        }
        cx.add(0, d_gate)
    }
}

/// Inputs `gate`, `up`, `d_out`; outputs `d_gate`, `d_up`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GluBackward(pub Gate);

impl GluBackward {
    /// Derivative of the gate's function.
    fn slope(&self, g: f64) -> f64 {
        match self.0 {
            Gate::Silu => {
                let s = UnaryOp::Sigmoid.eval(g);
                s * (1.0 + g * (1.0 - s))
            }
            Gate::GeluTanh => {
                // g·σ(2u) with u = √(2/π)·(g + 0.044715·g³).
                let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
                let s = UnaryOp::Sigmoid.eval(scale * (g + 0.044715 * g * g * g));
                s * (1.0 + g * (1.0 - s) * scale * (1.0 + 3.0 * 0.044715 * g * g))
            }
            Gate::GeluErf => {
                let below = 0.5 * (1.0 + UnaryOp::Erf.eval(g * std::f64::consts::FRAC_1_SQRT_2));
                below + g * (-0.5 * g * g).exp() / (2.0 * std::f64::consts::PI).sqrt()
            }
        }
    }
}

impl OpRule for GluBackward {
    fn name(&self) -> &'static str {
        "glu-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        same(self.name(), inputs)?;
        Ok(vec![inputs[0].clone(), inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (gate, up, d) = (cx.input(0), cx.input(1), cx.input(2));
        let d_gate = gate.map(|g| self.slope(g)).zip(up, |s, u| s * u).zip(d, |s, d| s * d);
        let d_up = gate.map(|g| self.0.unary().eval(g)).zip(d, |s, d| s * d);
        Ok(vec![d_gate, d_up])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }
}
