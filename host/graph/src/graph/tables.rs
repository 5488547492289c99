//! What a graph refers to besides its nodes: inputs, weights, states, effects and adaptable sites.

use super::{NodeId, ParamId, StateId};
use crate::Type;
use crate::dynamic8::Map;

/// A named input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputInfo {
    /// Name to bind by.
    pub name: String,
    /// Type.
    pub ty: Type,
}

/// A weight tensor as the graph knows it. Its storage format is the weight store's business.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// Unique name, for example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Whether gradients reach it. A frozen parameter records none.
    pub trainable: bool,
}

/// A persistent tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct StateInfo {
    /// Unique name.
    pub name: String,
    /// Type; KV caches have symbolic sizes.
    pub ty: Type,
    /// What elements are rounded to when they are written, so that devices keep them in 8 bits; `None` keeps them whole.
    pub map: Option<Map>,
}

/// What an effect writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A state.
    State(StateId),
    /// A parameter's storage (the optimizer's result).
    Param(ParamId),
}

/// A write that happens when the run reaches `value`. Effects keep nodes alive.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    /// What is written.
    pub target: Target,
    /// With what.
    pub value: NodeId,
    /// Add to what is there instead of replacing it.
    pub accumulate: bool,
}

/// Kind of an adaptable call site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SiteKind {
    /// `y = x·Wᵀ + b`.
    Linear,
    /// `y[i, j] = W[e]·x[i]` with an expert e of each (row, choice).
    GroupedLinear,
    /// Table lookup.
    Embedding,
    /// Convolution with filters `w`.
    Conv,
}

/// A place where a PEFT method may replace the plain computation.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Module path as in the reference implementation, for example `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Kind.
    pub kind: SiteKind,
    /// Input value.
    pub x: NodeId,
    /// Weight parameter node.
    pub weight: NodeId,
    /// Bias parameter node.
    pub bias: Option<NodeId>,
    /// The plain result.
    pub output: NodeId,
}
