//! The op set. An op is one struct in one file of this folder: its attributes, its shape rule, its backward rule and its reference
//! evaluation in f64. A device has a file of the same name that says how it is launched. [`Op`] lists them all; matches over it are
//! exhaustive, so a missing piece does not compile.
//!
//! Primitives: elementwise, layout, reduce, gather, top-k, matmul. Composites with kernels of their own: linear, low-rank-linear, grouped-linear,
//! conv, embed, norm, rope, attention, glu, cross-entropy, the distribution of a head, dropout, adam.

mod adam;
mod attention;
mod conv;
mod cross_entropy;
mod distribution;
mod dropout;
mod elementwise;
mod embed;
mod fused;
mod gather;
mod glu;
mod grouped_linear;
mod identity;
mod layout;
mod leaf;
mod linear;
mod low_rank;
mod matmul;
mod norm;
mod reduce;
mod rope;
mod top_k;

pub use adam::Adam;
pub use attention::{Attention, AttentionBackward, AttentionSpec, CachedAttention};
pub use conv::{Conv, ConvDw, ConvDx, ConvSpec};
pub use cross_entropy::{CrossEntropySpec, LinearCrossEntropy, LinearCrossEntropyBackward};
pub use distribution::{Bend, LinearDivergence, LinearDivergenceBackward, LinearStatistic, LinearStatisticBackward, Statistic};
pub use dropout::Dropout;
pub use elementwise::{Binary, BinaryOp, Cast, Select, Unary, UnaryOp};
pub use embed::{Embed, EmbedDw};
pub use fused::{Fused, Instr, Span};
pub use gather::{GatherRows, ScatterRows};
pub use glu::{Gate, Glu, GluBackward};
pub use grouped_linear::{GroupedLinear, GroupedLinearDw, GroupedLinearDx};
pub use identity::{Part, Read, StopGrad};
pub use layout::{Concat, Expand, Pad, Permute, Reshape, Slice};
pub use leaf::{Constant, ConstantData, Full, Input, Iota, Param, State};
pub use linear::{Linear, LinearDw, LinearDx};
pub use low_rank::LowRankLinear;
pub use matmul::MatMul;
pub use norm::{RmsNorm, RmsNormDw, RmsNormDx};
pub use reduce::{Reduce, ReduceOp, SegmentReduce, Softmax, SoftmaxDx};
pub use rope::{Rope, RopeLayout};
pub use top_k::{GatherLast, ScatterLast, TopK};

use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{Dim, Graph, Result, Type};

/// What every op defines.
pub trait OpRule {
    /// Name in dumps, messages and `has-op`.
    fn name(&self) -> &'static str;

    /// Output types, at least one, or why the inputs do not fit.
    ///
    /// # Errors
    /// With the rule that was broken.
    fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>>;

    /// Reference evaluation in f64; one tensor an output.
    ///
    /// # Errors
    /// When something is not bound or an index is out of range.
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>>;

    /// Appends the gradients of the inputs. There is no default: an op without a rule says so with [`Backward::refuse`].
    ///
    /// # Errors
    /// When there is no rule or a limit is reached.
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()>;

    /// Floating-point operations, a multiply-add counted as two. By default one an element of the outputs; where masks decide
    /// (attention), an upper bound.
    ///
    /// # Errors
    /// When a product overflows.
    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        let _ = inputs;
        outputs.iter().try_fold(Dim::fixed(0), |sum, ty| sum.add(&ty.shape.elements()?))
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Every op there is.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            $($(#[$doc])* $name($name),)*
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*

        impl OpRule for Op {
            fn name(&self) -> &'static str {
                match self { $(Op::$name(op) => op.name(),)* }
            }

            fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
                match self { $(Op::$name(op) => op.infer(g, inputs),)* }
            }

            fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
                match self { $(Op::$name(op) => op.eval(cx),)* }
            }

            fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
                match self { $(Op::$name(op) => op.backward(cx),)* }
            }

            fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
                match self { $(Op::$name(op) => op.flops(inputs, outputs),)* }
            }
        }
    };
}

ops! {
    /// Named input of the run.
    Input,
    /// Weight storage.
    Param,
    /// Persistent tensor.
    State,
    /// Data known at trace time.
    Constant,
    /// One number everywhere.
    Full,
    /// Index along an axis.
    Iota,
    /// Further output of a node.
    Part,
    /// Dense view of a parameter.
    Read,
    /// Identity without gradient.
    StopGrad,
    /// One-operand arithmetic.
    Unary,
    /// Two-operand arithmetic with broadcasting.
    Binary,
    /// Choice by a boolean.
    Select,
    /// Change of element type.
    Cast,
    /// Elementwise program made by fusion.
    Fused,
    /// Other shape, same order.
    Reshape,
    /// Axes in another order.
    Permute,
    /// Broadcast copy.
    Expand,
    /// Range along an axis.
    Slice,
    /// Join along an axis.
    Concat,
    /// Constant border.
    Pad,
    /// Reduction over axes.
    Reduce,
    /// Softmax over the last axis.
    Softmax,
    /// Gradient of softmax.
    SoftmaxDx,
    /// Reduction of rows by segment.
    SegmentReduce,
    /// Rows by index.
    GatherRows,
    /// Rows written or added by index.
    ScatterRows,
    /// Places of the largest along the last axis.
    TopK,
    /// Elements of the last axis by index.
    GatherLast,
    /// Elements added along the last axis by index.
    ScatterLast,
    /// Batched matrix product.
    MatMul,
    /// Product with a weight.
    Linear,
    /// Gradient of linear in its input.
    LinearDx,
    /// Gradient of linear in its weight.
    LinearDw,
    /// Product with a weight and one of low rank beside it.
    LowRankLinear,
    /// Product with the weight of each row's experts.
    GroupedLinear,
    /// Gradient of grouped linear in its input.
    GroupedLinearDx,
    /// Gradient of grouped linear in its weights.
    GroupedLinearDw,
    /// Convolution.
    Conv,
    /// Gradient of a convolution in its images.
    ConvDx,
    /// Gradient of a convolution in its filters.
    ConvDw,
    /// Table lookup.
    Embed,
    /// Gradient of a table.
    EmbedDw,
    /// Root-mean-square norm.
    RmsNorm,
    /// Its gradient in x.
    RmsNormDx,
    /// Its gradient in the weight.
    RmsNormDw,
    /// Rotary position embedding.
    Rope,
    /// Attention over packed segments.
    Attention,
    /// Its gradients.
    AttentionBackward,
    /// Attention that extends and reads a KV cache.
    CachedAttention,
    /// silu(gate) * up.
    Glu,
    /// Its gradients.
    GluBackward,
    /// Output projection and cross-entropy without logits in memory.
    LinearCrossEntropy,
    /// Its gradients.
    LinearCrossEntropyBackward,
    /// Entropy or mean logit of a head.
    LinearStatistic,
    /// Its gradients.
    LinearStatisticBackward,
    /// Divergence of two heads.
    LinearDivergence,
    /// Its gradients in one of them.
    LinearDivergenceBackward,
    /// Inverted dropout with a counter-based mask.
    Dropout,
    /// Step of an optimizer.
    Adam,
}

/// Product of fixed and symbolic factors.
fn count<'a>(factor: u64, dims: impl IntoIterator<Item = &'a Dim>) -> Result<Dim> {
    dims.into_iter().try_fold(Dim::fixed(factor), |p, d| p.mul(d))
}

/// Checks the number of inputs.
fn arity(op: &'static str, inputs: &[Type], want: usize) -> Result<()> {
    if inputs.len() == want { Ok(()) } else { Err(crate::Error::shape(op, format!("takes {want} inputs"), inputs)) }
}

/// Checks that every input is a float and the first one's type is what the op computes in.
fn floats(op: &'static str, inputs: &[Type]) -> Result<()> {
    if inputs.iter().all(|t| t.dtype.is_float()) {
        Ok(())
    } else {
        Err(crate::Error::dtype(op, "takes float values; `cast` them first", inputs))
    }
}
