//! The memory plan: what runs in which order, and where every value lives.
//!
//! A plan is a finished graph with storage assigned. Devices compile plans, not ops: a device walks [`Plan::launches`], resolves every
//! node through [`Plan::places`] and launches its kernel. All elements take four bytes (f32, or i32 for whole numbers).
//!
//! **Contract with kernels.** A launch may be given an output that is exactly one of its inputs' bytes, where [`in_place_inputs`]
//! says so; kernels of those ops load an element before they store it. No other overlap occurs. An output that nobody reads has no
//! storage ([`Launch::outputs`] is `None` there). Effects of a launch run after it, in the given order. A value placed in
//! [`Place::State`] or [`Place::Param`] by a launch is written there directly.
//!
//! A state in 8 bits is read by a launch of its own, which makes floats of it, and written by an effect, which rounds; only an
//! [`crate::op::Adam`] whose moments are packed is given the stored form itself.
//!
//! Casts to a float type from a float or boolean are aliases, since storage is the same.
//!
//! Sizes are symbolic; `Plan::layout` evaluates them for one binding and packs buffers into one arena by liveness, so a new
//! sequence length costs microseconds and compiles nothing.

mod assign;
mod in_place;
mod layout;
mod usage;

pub use assign::plan;
pub use in_place::in_place_inputs;
pub use usage::{Resident, Usage};

use crate::{Dim, Graph, InputId, NodeId, ParamId, StateId};

/// Index into [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub u32);

/// Where a node's value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the arena.
    Arena(BufferId),
    /// The bytes of another node (reshape, stop-grad, read of an f32 parameter, cast between float types, a second
    /// `Part` of the same output). That node is never an alias itself.
    Alias(NodeId),
    /// A parameter's storage, read as it is (op `Param`), or written in place (an update whose effect targets it).
    Param(ParamId),
    /// A state's storage, read (op `State`) or written in place.
    State(StateId),
    /// Bound by the caller for each run.
    Input(InputId),
    /// `Constant`, `Full` and `Iota` nodes that the device materialises once: constants, and short repetitions of fixed shape.
    Constant,
    /// Never materialised.
    Unused,
}

/// One kernel launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The node that runs.
    pub node: NodeId,
    /// Nodes that hold its outputs: the node itself, then the [`crate::op::Part`] nodes by index; `None` where nobody reads one.
    pub outputs: Vec<Option<NodeId>>,
    /// Indices into [`Graph::effects`] to carry out after the launch. An effect whose value already lives in its target is absent.
    pub effects: Vec<usize>,
}

/// A stretch of the arena.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Elements of four bytes.
    pub elements: Dim,
    /// First launch that touches it.
    pub first: usize,
    /// Last launch that touches it; `usize::MAX` for outputs, which live to the end of the run.
    pub last: usize,
}

/// A graph with storage assigned.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The finished graph.
    pub graph: Graph,
    /// What runs, in order.
    pub launches: Vec<Launch>,
    /// Arena buffers.
    pub buffers: Vec<Buffer>,
    /// Place of every node.
    pub places: Vec<Place>,
}

/// Buffers placed in the arena for one binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Byte offset of each buffer, a multiple of 64.
    pub offsets: Vec<usize>,
    /// Byte offset of each launch's scratch.
    pub scratch: Vec<usize>,
    /// Bytes of the arena.
    pub bytes: usize,
}
