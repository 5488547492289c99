//! Symbolic tensors and what can be done with them.

use std::rc::Rc;

use crate::bindings::swift::tensor::graph::{self as raw, BinaryOp, Builder, ReduceOp, UnaryOp};
use crate::bindings::swift::tensor::types::{Attr, AttrValue};
use crate::param::Weight;
use crate::{Dim, Dtype, IntoShape, Result, trace};

/// A symbolic tensor. Cloning copies a handle. Operands broadcast as in numpy.
#[derive(Clone)]
pub struct Value(Inner);

#[derive(Clone)]
enum Inner {
    /// Of the host's graph.
    Node(Rc<raw::Value>),
    /// A number that has not met a tensor, whose element type it will take.
    Number(f64),
    /// What follows an error.
    Failed,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> Value {
            self.map(|g, x| g.unary(UnaryOp::$op, x))
        })*
    };
}

macro_rules! compare {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(&self, other: impl Into<Value>) -> Value {
            self.binary(BinaryOp::$op, &other.into())
        })*
    };
}

/// Elementwise functions.
impl Value {
    unary! {
        /// Absolute value.
        abs Abs;
        /// Exponential.
        exp Exp;
        /// Natural logarithm.
        log Log;
        /// Square root.
        sqrt Sqrt;
        /// One over the square root.
        rsqrt Rsqrt;
        /// Sine.
        sin Sin;
        /// Cosine.
        cos Cos;
        /// Hyperbolic tangent.
        tanh Tanh;
        /// 1 / (1 + exp(-x)).
        sigmoid Sigmoid;
        /// x · sigmoid(x).
        silu Silu;
        /// GELU by the error function.
        gelu GeluErf;
        /// GELU by its tanh approximation.
        gelu_tanh GeluTanh;
        /// max(x, 0).
        relu Relu;
        /// log(1 + exp(x)).
        softplus Softplus;
        /// log(sigmoid(x)), exact for large negative x.
        log_sigmoid LogSigmoid;
        /// -1, 0 or 1.
        sign Sign;
    }

    compare! {
        /// Power.
        pow Pow;
        /// The larger one.
        max Max;
        /// The smaller one.
        min Min;
        /// Booleans: greater.
        gt Gt;
        /// Booleans: at least.
        ge Ge;
        /// Booleans: less.
        lt Lt;
        /// Booleans: at most.
        le Le;
        /// Booleans: equal.
        equals Eq;
    }

    pub(crate) fn negated(&self) -> Value {
        match self.0 {
            Inner::Number(v) => Value::number(-v),
            _ => self.map(|g, x| g.unary(UnaryOp::Neg, x)),
        }
    }

    /// x · x.
    #[must_use]
    pub fn square(&self) -> Value {
        self * self
    }

    /// Where `self` (booleans) holds `a`, elsewhere `b`.
    #[must_use]
    pub fn select(&self, a: impl Into<Value>, b: impl Into<Value>) -> Value {
        let (a, b) = (a.into(), b.into());
        let ty = if matches!(a.0, Inner::Node(_)) { a.dtype() } else { b.dtype() };
        match trace::record(|g| Ok(a.node(g, ty).zip(b.node(g, ty)))).flatten() {
            Some((a, b)) => self.map(|g, cond| g.select(cond, &a, &b)),
            None => Value::failed(),
        }
    }

    /// Other element type.
    #[must_use]
    pub fn cast(&self, ty: Dtype) -> Value {
        self.map(|g, x| g.cast(x, ty))
    }

    /// As f32; booleans become 0 and 1.
    #[must_use]
    pub fn to_f32(&self) -> Value {
        self.cast(Dtype::F32)
    }
}

/// Products.
impl Value {
    /// `x · Wᵀ` for x `[..., in]` and a weight `[out, in]`.
    #[must_use]
    pub fn linear(&self, weight: &impl Weight) -> Value {
        weight.project(self)
    }

    /// `[..., m, k] · [..., k, n]`.
    #[must_use]
    pub fn matmul(&self, other: impl Into<Value>) -> Value {
        let other = other.into();
        self.map2(&other, |g, a, b| g.matmul(a, b, false))
    }

    /// `[..., m, k] · [..., n, k]ᵀ`.
    #[must_use]
    pub fn matmul_transposed(&self, other: impl Into<Value>) -> Value {
        let other = other.into();
        self.map2(&other, |g, a, b| g.matmul(a, b, true))
    }
}

/// Reductions. Negative axes count from the end.
impl Value {
    /// Any reduction; `keep` leaves reduced axes with size 1.
    #[must_use]
    fn reduce(&self, op: ReduceOp, axes: &[i32], keep: bool) -> Value {
        self.map(|g, x| g.reduce(op, x, axes, keep))
    }

    fn all_axes(&self) -> Vec<i32> {
        (0..self.shape().len() as i32).collect()
    }

    /// Sum of all elements, a scalar.
    #[must_use]
    pub fn sum(&self) -> Value {
        self.reduce(ReduceOp::Sum, &self.all_axes(), false)
    }

    /// Mean of all elements, a scalar.
    #[must_use]
    pub fn mean(&self) -> Value {
        self.reduce(ReduceOp::Mean, &self.all_axes(), false)
    }

    /// Sum over one axis.
    #[must_use]
    pub fn sum_axis(&self, axis: i32) -> Value {
        self.reduce(ReduceOp::Sum, &[axis], false)
    }

    /// Mean over one axis, which stays with size 1.
    #[must_use]
    pub fn mean_axis_keep(&self, axis: i32) -> Value {
        self.reduce(ReduceOp::Mean, &[axis], true)
    }

    /// Largest over one axis.
    #[must_use]
    pub fn max_axis(&self, axis: i32) -> Value {
        self.reduce(ReduceOp::Max, &[axis], false)
    }

    /// log(Σ exp) over one axis.
    #[must_use]
    pub fn log_sum_exp(&self, axis: i32) -> Value {
        self.reduce(ReduceOp::LogSumExp, &[axis], false)
    }

    /// Euclidean norm of each row: `[..., d]` to `[...]`.
    #[must_use]
    pub fn row_norm(&self) -> Value {
        self.square().sum_axis(-1).sqrt()
    }

    /// Softmax over one axis.
    #[must_use]
    pub fn softmax(&self, axis: i32) -> Value {
        self.map(|g, x| g.softmax(x, axis))
    }

    /// Sums of rows `[n, ...]` by segment number (s32 `[n]`): `[count, ...]`.
    #[must_use]
    pub fn segment_sum(&self, segments: &Value, count: impl Into<Dim>) -> Value {
        let count = count.into();
        self.map2(segments, |g, x, s| g.segment_reduce(ReduceOp::Sum, x, s, count))
    }

    /// Largest of rows `[n, ...]` by segment number (s32 `[n]`): `[count, ...]`.
    #[must_use]
    pub fn segment_max(&self, segments: &Value, count: impl Into<Dim>) -> Value {
        let count = count.into();
        self.map2(segments, |g, x, s| g.segment_reduce(ReduceOp::Max, x, s, count))
    }
}

/// Layout.
impl Value {
    /// Same elements, other shape.
    #[must_use]
    pub fn reshape(&self, to: impl IntoShape) -> Value {
        let to = to.into_shape();
        self.map(|g, x| g.reshape(x, &to))
    }

    /// Output axis i is input axis `axes[i]`.
    #[must_use]
    pub fn permute(&self, axes: &[u32]) -> Value {
        self.map(|g, x| g.permute(x, axes))
    }

    /// Broadcast copy.
    #[must_use]
    pub fn expand(&self, to: impl IntoShape) -> Value {
        let to = to.into_shape();
        self.map(|g, x| g.expand(x, &to))
    }

    /// `start..start + len` of an axis.
    #[must_use]
    pub fn slice(&self, axis: i32, start: impl Into<Dim>, len: impl Into<Dim>) -> Value {
        let (start, len) = (start.into(), len.into());
        self.map(|g, x| g.slice(x, axis, start, len))
    }

    /// The `k` largest of the last axis and their indices (s32), largest first.
    #[must_use]
    pub fn top_k(&self, k: u32) -> (Value, Value) {
        let found = trace::record(|g| match self.node(g, Dtype::F32) {
            Some(x) => g.top_k(&x, k).map(Some),
            None => Ok(None),
        });
        match found.flatten() {
            Some((values, indices)) => (Value::own(values), Value::own(indices)),
            None => (Value::failed(), Value::failed()),
        }
    }

    /// Elements of the last axis by index (s32): `[..., c]` at `[..., k]` gives `[..., k]`.
    #[must_use]
    pub fn gather_last(&self, index: &Value) -> Value {
        self.map2(index, |g, x, index| g.gather_last(x, index))
    }

    /// Elements added at their index (s32) of a new last axis of zeros: `[..., k]` at `[..., k]` gives `[..., count]`.
    #[must_use]
    pub fn scatter_last(&self, index: &Value, count: impl Into<Dim>) -> Value {
        let count = count.into();
        self.map2(index, |g, x, index| g.scatter_last(x, index, count))
    }

    /// Rows by index (s32).
    #[must_use]
    pub fn gather(&self, index: &Value) -> Value {
        self.map2(index, |g, table, index| g.gather_rows(table, index))
    }
}

/// Network pieces.
impl Value {
    /// Row i of x `[n, in]` by the matrices `experts[i, ..]` (s32 `[n, k]`) of `weight` `[e, out, in]`: `[n, k, out]`.
    #[must_use]
    pub fn grouped_linear(&self, weight: &crate::Param, experts: &Value) -> Value {
        match &weight.0 {
            Some(w) => self.map2(experts, |g, x, experts| g.grouped_linear(w, x, experts)),
            None => Value::failed(),
        }
    }

    /// Convolution with filters `weight` `[out, channels / groups, (height,) width]`: `[batch, channels, (height,) width]` to
    /// `[batch, out, ...]`.
    #[must_use]
    pub fn conv(&self, weight: &crate::Param, bias: Option<&crate::Param>, spec: &raw::ConvSpec) -> Value {
        let bias = bias.and_then(|b| b.0.clone());
        match &weight.0 {
            Some(w) => self.map(|g, x| g.conv(x, w, bias.as_deref(), spec)),
            None => Value::failed(),
        }
    }

    /// x / rms(x) · w over the last axis.
    #[must_use]
    pub fn rms_norm(&self, weight: &crate::Param, eps: f64) -> Value {
        match &weight.0 {
            Some(w) => self.map(|g, x| g.rms_norm(x, Some(w), eps as f32, false)),
            None => Value::failed(),
        }
    }

    /// x / rms(x) · (1 + w) over the last axis.
    #[must_use]
    pub fn rms_norm_unit_offset(&self, weight: &crate::Param, eps: f64) -> Value {
        match &weight.0 {
            Some(w) => self.map(|g, x| g.rms_norm(x, Some(w), eps as f32, true)),
            None => Value::failed(),
        }
    }

    /// (x - mean(x)) / √(var(x) + eps) · w + b over the last axis, with what there is of w and b.
    #[must_use]
    pub fn layer_norm(&self, weight: Option<&crate::Param>, bias: Option<&crate::Param>, eps: f64) -> Value {
        let raw = |p: Option<&crate::Param>| p.and_then(|p| p.0.clone());
        let (w, b) = (raw(weight), raw(bias));
        self.map(|g, x| g.layer_norm(x, w.as_deref(), b.as_deref(), eps as f32))
    }

    /// Inverted dropout in training, nothing elsewhere and at rate 0.
    #[must_use]
    pub fn dropout(&self, rate: f64) -> Value {
        if rate == 0.0 {
            return self.clone();
        }
        let attrs = [Attr { key: "rate".into(), val: AttrValue::Float(rate) }];
        self.map(|g, x| {
            let mut outputs = g.call("dropout", 1, &[x], &attrs)?;
            outputs.pop().ok_or_else(|| crate::Error::new(crate::ErrorCode::Internal, "`dropout` gave no output"))
        })
    }

    /// The same value, through which no gradient flows.
    #[must_use]
    pub fn stop_grad(&self) -> Value {
        self.map(|g, x| g.stop_grad(x))
    }

    /// An op that the host registers by name, with one output.
    #[must_use]
    pub fn call(name: &str, version: u32, inputs: &[&Value], attrs: &[(&str, AttrValue)]) -> Value {
        let attrs: Vec<Attr> = attrs.iter().map(|(key, val)| Attr { key: (*key).into(), val: val.clone() }).collect();
        Value::record(|g| {
            let nodes: Vec<Rc<raw::Value>> = inputs.iter().filter_map(|v| v.node(g, Dtype::F32)).collect();
            let borrowed: Vec<&raw::Value> = nodes.iter().map(|v| &**v).collect();
            let mut outputs = g.call(name, version, &borrowed, &attrs)?;
            outputs.pop().ok_or_else(|| crate::Error::new(crate::ErrorCode::Internal, format!("`{name}` gave no output")))
        })
    }
}

/// Data known while tracing.
impl Value {
    /// A vector of these numbers.
    #[must_use]
    pub fn vector(numbers: &[f32]) -> Value {
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        Value::record(|g| g.constant(&[numbers.len() as u64], Dtype::F32, &bytes))
    }
}

/// Types and shapes.
impl Value {
    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match &self.0 {
            Inner::Node(x) => x.dtype(),
            Inner::Number(_) | Inner::Failed => Dtype::F32,
        }
    }

    /// Shape; empty for a scalar and after an error.
    pub fn shape(&self) -> Vec<Dim> {
        match &self.0 {
            Inner::Node(x) => x.shape(),
            Inner::Number(_) | Inner::Failed => Vec::new(),
        }
    }

    /// Size of one axis; negative axes count from the end.
    pub fn dim(&self, axis: i32) -> Dim {
        let shape = self.shape();
        let index = if axis < 0 { axis + shape.len() as i32 } else { axis };
        usize::try_from(index).ok().and_then(|i| shape.get(i).copied()).unwrap_or(Dim::Fixed(0))
    }
}

/// How handles are kept.
impl Value {
    pub(crate) fn number(v: f64) -> Value {
        Value(Inner::Number(v))
    }

    pub(crate) fn failed() -> Value {
        Value(Inner::Failed)
    }

    pub(crate) fn own(x: raw::Value) -> Value {
        Value(Inner::Node(Rc::new(x)))
    }

    /// The output of one call to the host.
    pub(crate) fn record(f: impl FnOnce(&Builder) -> Result<raw::Value>) -> Value {
        trace::record(f).map_or_else(Value::failed, Value::own)
    }

    /// The handle; a number becomes a scalar of type `ty`. None after an error.
    pub(crate) fn node(&self, g: &Builder, ty: Dtype) -> Option<Rc<raw::Value>> {
        match &self.0 {
            Inner::Node(x) => Some(x.clone()),
            Inner::Number(v) => Some(Rc::new(g.scalar(*v, ty))),
            Inner::Failed => None,
        }
    }

    /// The handle to give back to the host.
    pub(crate) fn into_raw(self) -> Option<raw::Value> {
        let node = trace::record(|g| Ok(self.node(g, Dtype::F32)))??;
        drop(self);
        Some(Rc::try_unwrap(node).unwrap_or_else(|shared| shared.dup()))
    }

    pub(crate) fn map(&self, f: impl FnOnce(&Builder, &raw::Value) -> Result<raw::Value>) -> Value {
        match trace::record(|g| Ok(self.node(g, Dtype::F32))).flatten() {
            Some(x) => Value::record(|g| f(g, &x)),
            None => Value::failed(),
        }
    }

    pub(crate) fn map2(&self, other: &Value, f: impl FnOnce(&Builder, &raw::Value, &raw::Value) -> Result<raw::Value>) -> Value {
        let ty = if matches!(self.0, Inner::Node(_)) { self.dtype() } else { other.dtype() };
        match trace::record(|g| Ok(self.node(g, ty).zip(other.node(g, ty)))).flatten() {
            Some((a, b)) => Value::record(|g| f(g, &a, &b)),
            None => Value::failed(),
        }
    }

    pub(crate) fn binary(&self, op: BinaryOp, other: &Value) -> Value {
        self.map2(other, |g, a, b| g.binary(op, a, b))
    }
}

/// Joins values along an axis.
#[must_use]
pub fn concat(values: &[&Value], axis: i32) -> Value {
    Value::record(|g| {
        let nodes: Vec<Rc<raw::Value>> = values.iter().filter_map(|v| v.node(g, Dtype::F32)).collect();
        let borrowed: Vec<&raw::Value> = nodes.iter().map(|v| &**v).collect();
        g.concat(&borrowed, axis)
    })
}
