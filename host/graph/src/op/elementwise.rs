//! Elementwise arithmetic with numpy broadcasting.

use super::{OpRule, arity, floats};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{DType, Error, Graph, NodeId, Result, Type};

/// One-operand functions. `round` takes ties to even. Closed: the WIT enum of the same cases is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the functions' own")]
pub enum UnaryOp {
    Neg,
    Abs,
    Exp,
    Log,
    Log1p,
    Expm1,
    Sqrt,
    Rsqrt,
    Recip,
    Sin,
    Cos,
    Tanh,
    Sigmoid,
    Silu,
    GeluErf,
    GeluTanh,
    Relu,
    Softplus,
    LogSigmoid,
    Erf,
    Floor,
    Round,
    Sign,
    LogicalNot,
}

/// Two-operand functions; comparisons give booleans. `rem` has the sign of the first operand; division of whole numbers truncates.
/// Equal operands of `min` and `max` share the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the functions' own")]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    Rem,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    LogicalAnd,
    LogicalOr,
}

impl BinaryOp {
    /// Whether the result is a boolean.
    pub fn is_comparison(self) -> bool {
        use BinaryOp::*;
        matches!(self, Eq | Ne | Lt | Le | Gt | Ge | LogicalAnd | LogicalOr)
    }
}

/// `f(x)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unary(pub UnaryOp);

impl OpRule for Unary {
    fn name(&self) -> &'static str {
        "unary"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        match self.0 {
            UnaryOp::LogicalNot if inputs[0].dtype != DType::Bool => {
                return Err(Error::dtype(self.name(), "logical-not takes booleans", inputs));
            }
            UnaryOp::LogicalNot | UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Sign => {}
            _ => floats(self.name(), inputs)?,
        }
        Ok(vec![inputs[0].clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).map(|x| self.0.eval(x))])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x) = (cx.d_out()?, cx.input(0));
        if let Some(slope) = self.0.slope(cx, x)? {
            let d = cx.g.mul(d, slope)?;
            cx.add(0, d)?;
        }
        Ok(())
    }
}

/// `f(a, b)`, broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binary(pub BinaryOp);

impl OpRule for Binary {
    fn name(&self) -> &'static str {
        "binary"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        if inputs[0].dtype != inputs[1].dtype {
            return Err(Error::dtype(self.name(), format!("{:?} takes two values of one element type", self.0), inputs));
        }
        if matches!(self.0, BinaryOp::LogicalAnd | BinaryOp::LogicalOr) != (inputs[0].dtype == DType::Bool) {
            return Err(Error::dtype(self.name(), "logical ops take booleans, all others numbers", inputs));
        }
        let shape = inputs[0].shape.broadcast(&inputs[1].shape);
        let shape = shape.ok_or_else(|| Error::shape(self.name(), format!("{:?}: shapes do not broadcast", self.0), inputs))?;
        let dtype = if self.0.is_comparison() { DType::Bool } else { inputs[0].dtype };
        Ok(vec![Type::new(dtype, shape)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let shape = cx.shape(0)?;
        let (a, b) = (cx.input(0).expand(&shape), cx.input(1).expand(&shape));
        let whole = cx.input_type(0).dtype.is_int();
        Ok(vec![a.zip(&b, |a, b| {
            let value = self.0.eval(a, b);
            if whole { value.trunc() } else { value }
        })])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let d = cx.d_out()?;
        for side in 0..2 {
            if cx.needs(side)
                && let Some(d) = self.0.gradient(cx, d, side)?
            {
                cx.add_summed(side, d)?;
            }
        }
        Ok(())
    }
}

/// `cond ? a : b`, broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Select;

impl OpRule for Select {
    fn name(&self) -> &'static str {
        "select"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 3)?;
        if inputs[0].dtype != DType::Bool || inputs[1].dtype != inputs[2].dtype {
            return Err(Error::dtype(self.name(), "takes a boolean and two values of one element type", inputs));
        }
        let shape = inputs[1].shape.broadcast(&inputs[2].shape).and_then(|s| s.broadcast(&inputs[0].shape));
        let shape = shape.ok_or_else(|| Error::shape(self.name(), "shapes do not broadcast", inputs))?;
        Ok(vec![Type::new(inputs[1].dtype, shape)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let shape = cx.shape(0)?;
        let [cond, a, b] = [0, 1, 2].map(|i| cx.input(i).expand(&shape).data);
        cx.one((0..a.len()).map(|i| if cond[i] != 0.0 { a[i] } else { b[i] }).collect())
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, cond) = (cx.d_out()?, cx.input(0));
        let zero = cx.number(0.0, d)?;
        if cx.needs(1) {
            let a = cx.g.select(cond, d, zero)?;
            cx.add_summed(1, a)?;
        }
        if cx.needs(2) {
            let b = cx.g.select(cond, zero, d)?;
            cx.add_summed(2, b)?;
        }
        Ok(())
    }
}

/// Another element type. Between float types the CPU computes in f32 and this is the identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cast(pub DType);

impl OpRule for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 1)?;
        Ok(vec![Type::new(self.0, inputs[0].shape.clone())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.input(0).map(|x| match self.0 {
            DType::Bool => f64::from(u8::from(x != 0.0)),
            dtype if dtype.is_int() => x.trunc(),
            _ => x,
        })])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        // `add` casts back.
        let d = cx.d_out()?;
        cx.add(0, d)
    }
}

impl UnaryOp {
    /// The function in f64.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            UnaryOp::Neg => -x,
            UnaryOp::Abs => x.abs(),
            UnaryOp::Exp => x.exp(),
            UnaryOp::Log => x.ln(),
            UnaryOp::Log1p => x.ln_1p(),
            UnaryOp::Expm1 => x.exp_m1(),
            UnaryOp::Sqrt => x.sqrt(),
            UnaryOp::Rsqrt => 1.0 / x.sqrt(),
            UnaryOp::Recip => 1.0 / x,
            UnaryOp::Sin => x.sin(),
            UnaryOp::Cos => x.cos(),
            UnaryOp::Tanh => x.tanh(),
            UnaryOp::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryOp::Silu => x / (1.0 + (-x).exp()),
            UnaryOp::GeluErf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            UnaryOp::GeluTanh => 0.5 * x * (1.0 + (GELU_SCALE * (x + GELU_CUBIC * x * x * x)).tanh()),
            UnaryOp::Relu if x < 0.0 => 0.0,
            UnaryOp::Relu => x,
            // `max(x, 0) + log(1 + e^-|x|)` overflows nowhere; written so that NaN stays NaN.
            UnaryOp::Softplus => UnaryOp::Relu.eval(x) + (-x.abs()).exp().ln_1p(),
            UnaryOp::LogSigmoid => -UnaryOp::Softplus.eval(-x),
            UnaryOp::Erf => erf(x),
            UnaryOp::Floor => x.floor(),
            UnaryOp::Round => x.round_ties_even(),
            UnaryOp::Sign if x == 0.0 || x.is_nan() => x,
            UnaryOp::Sign => x.signum(),
            UnaryOp::LogicalNot => f64::from(u8::from(x == 0.0)),
        }
    }

    /// The derivative at `x` as a graph; `None` where it is zero everywhere.
    fn slope(self, cx: &mut Backward<'_>, x: NodeId) -> Result<Option<NodeId>> {
        let y = cx.node();
        let one = cx.number(1.0, x)?;
        Ok(Some(match self {
            UnaryOp::Floor | UnaryOp::Round | UnaryOp::Sign | UnaryOp::LogicalNot => return Ok(None),
            UnaryOp::Neg => cx.number(-1.0, x)?,
            UnaryOp::Abs => cx.g.unary(UnaryOp::Sign, x)?,
            UnaryOp::Exp => y,
            UnaryOp::Log => cx.g.unary(UnaryOp::Recip, x)?,
            UnaryOp::Log1p => {
                let shifted = cx.g.add(x, one)?;
                cx.g.unary(UnaryOp::Recip, shifted)?
            }
            UnaryOp::Expm1 => cx.g.add(y, one)?,
            UnaryOp::Sqrt => {
                let half = cx.number(0.5, x)?;
                cx.g.div(half, y)?
            }
            UnaryOp::Rsqrt => {
                let (square, cubed) = (cx.g.mul(y, y)?, cx.g.scale(y, -0.5)?);
                cx.g.mul(square, cubed)?
            }
            UnaryOp::Recip => {
                let square = cx.g.mul(y, y)?;
                cx.g.unary(UnaryOp::Neg, square)?
            }
            UnaryOp::Sin => cx.g.unary(UnaryOp::Cos, x)?,
            UnaryOp::Cos => {
                let sin = cx.g.unary(UnaryOp::Sin, x)?;
                cx.g.unary(UnaryOp::Neg, sin)?
            }
            UnaryOp::Tanh => {
                let square = cx.g.mul(y, y)?;
                cx.g.sub(one, square)?
            }
            UnaryOp::Sigmoid => {
                let rest = cx.g.sub(one, y)?;
                cx.g.mul(y, rest)?
            }
            UnaryOp::Silu => {
                // s + y·(1 - s)
                let s = cx.g.unary(UnaryOp::Sigmoid, x)?;
                let rest = cx.g.sub(one, s)?;
                let bend = cx.g.mul(y, rest)?;
                cx.g.add(s, bend)?
            }
            UnaryOp::GeluErf => {
                // Φ(x) + x·φ(x)
                let scaled = cx.g.scale(x, std::f64::consts::FRAC_1_SQRT_2)?;
                let erf = cx.g.unary(UnaryOp::Erf, scaled)?;
                let above = cx.g.add(erf, one)?;
                let cdf = cx.g.scale(above, 0.5)?;
                let bell = gauss(cx, scaled, 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2)?;
                let bend = cx.g.mul(x, bell)?;
                cx.g.add(cdf, bend)?
            }
            UnaryOp::GeluTanh => {
                // With u = c·(x + k·x³), t = tanh u: (1 + t)/2 + x·(1 - t²)·c·(1 + 3k·x²)/2
                let square = cx.g.mul(x, x)?;
                let cubic = cx.g.scale(square, GELU_CUBIC)?;
                let factor = cx.g.add(cubic, one)?;
                let inner = cx.g.mul(x, factor)?;
                let u = cx.g.scale(inner, GELU_SCALE)?;
                let t = cx.g.unary(UnaryOp::Tanh, u)?;
                let above = cx.g.add(t, one)?;
                let cdf = cx.g.scale(above, 0.5)?;
                let below = cx.g.sub(one, t)?;
                let steep = cx.g.scale(square, 3.0 * GELU_CUBIC)?;
                let steep = cx.g.add(steep, one)?;
                let steep = cx.g.mul(steep, x)?;
                let steep = cx.g.scale(steep, GELU_SCALE)?;
                let bend = cx.g.mul(cdf, below)?;
                let bend = cx.g.mul(bend, steep)?;
                cx.g.add(cdf, bend)?
            }
            UnaryOp::Relu => {
                let zero = cx.number(0.0, x)?;
                cx.indicator(BinaryOp::Gt, x, zero)?
            }
            UnaryOp::Softplus => cx.g.unary(UnaryOp::Sigmoid, x)?,
            UnaryOp::LogSigmoid => {
                let mirrored = cx.g.unary(UnaryOp::Neg, x)?;
                cx.g.unary(UnaryOp::Sigmoid, mirrored)?
            }
            UnaryOp::Erf => gauss(cx, x, std::f64::consts::FRAC_2_SQRT_PI)?,
        }))
    }
}

/// √(2/π) of the tanh form of GELU (Hendrycks and Gimpel 2016).
const GELU_SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// Its cubic coefficient.
const GELU_CUBIC: f64 = 0.044715;

/// `factor·e^(-x²)`.
fn gauss(cx: &mut Backward<'_>, x: NodeId, factor: f64) -> Result<NodeId> {
    let square = cx.g.mul(x, x)?;
    let below = cx.g.unary(UnaryOp::Neg, square)?;
    let bell = cx.g.unary(UnaryOp::Exp, below)?;
    cx.g.scale(bell, factor)
}

/// Error function to about 1e-15 by the all-positive series
/// `erf x = 2/√π e^(-x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!` (Abramowitz and Stegun 7.1.6); past 6 it is one.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

impl BinaryOp {
    /// The function in f64; comparisons give 0 or 1.
    pub fn eval(self, a: f64, b: f64) -> f64 {
        let truth = |value: bool| f64::from(u8::from(value));
        match self {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div => a / b,
            BinaryOp::Pow => a.powf(b),
            BinaryOp::Min => a.min(b),
            BinaryOp::Max => a.max(b),
            BinaryOp::Rem => a % b,
            BinaryOp::Eq => truth(a == b),
            BinaryOp::Ne => truth(a != b),
            BinaryOp::Lt => truth(a < b),
            BinaryOp::Le => truth(a <= b),
            BinaryOp::Gt => truth(a > b),
            BinaryOp::Ge => truth(a >= b),
            BinaryOp::LogicalAnd => truth(a != 0.0 && b != 0.0),
            BinaryOp::LogicalOr => truth(a != 0.0 || b != 0.0),
        }
    }

    /// `d` times the derivative in operand `side`, in the output's shape; `None` where it is zero everywhere.
    fn gradient(self, cx: &mut Backward<'_>, d: NodeId, side: usize) -> Result<Option<NodeId>> {
        let (a, b, y) = (cx.input(0), cx.input(1), cx.node());
        Ok(Some(match (self, side) {
            (BinaryOp::Add, _) | (BinaryOp::Sub | BinaryOp::Rem, 0) => d,
            (BinaryOp::Sub, _) => cx.g.unary(UnaryOp::Neg, d)?,
            (BinaryOp::Mul, _) => cx.g.mul(d, if side == 0 { b } else { a })?,
            (BinaryOp::Div, 0) => cx.g.div(d, b)?,
            (BinaryOp::Div, _) => {
                let (share, down) = (cx.g.div(y, b)?, cx.g.unary(UnaryOp::Neg, d)?);
                cx.g.mul(down, share)?
            }
            (BinaryOp::Pow, 0) => {
                let one = cx.number(1.0, b)?;
                let less = cx.g.sub(b, one)?;
                let power = cx.g.binary(BinaryOp::Pow, a, less)?;
                let slope = cx.g.mul(b, power)?;
                cx.g.mul(d, slope)?
            }
            (BinaryOp::Pow, _) => {
                // y·ln a, and 0 where the base is not positive.
                let zero = cx.number(0.0, a)?;
                let (positive, log) = (cx.g.binary(BinaryOp::Gt, a, zero)?, cx.g.unary(UnaryOp::Log, a)?);
                let log = cx.g.select(positive, log, zero)?;
                let slope = cx.g.mul(y, log)?;
                cx.g.mul(d, slope)?
            }
            (BinaryOp::Min | BinaryOp::Max, _) => {
                let first = (self == BinaryOp::Max) == (side == 0);
                let (win, tie) = (if first { BinaryOp::Gt } else { BinaryOp::Lt }, BinaryOp::Eq);
                let (win, tie) = (cx.indicator(win, a, b)?, cx.indicator(tie, a, b)?);
                let half = cx.g.scale(tie, 0.5)?;
                let share = cx.g.add(win, half)?;
                cx.g.mul(d, share)?
            }
            (BinaryOp::Rem, _) => {
                // a rem b = a - b·trunc(a/b), and (a - y)/b is that whole number up to rounding.
                let whole = cx.g.sub(a, y)?;
                let times = cx.g.div(whole, b)?;
                let times = cx.g.unary(UnaryOp::Round, times)?;
                let down = cx.g.unary(UnaryOp::Neg, d)?;
                cx.g.mul(down, times)?
            }
            _ => return Ok(None),
        }))
    }
}
