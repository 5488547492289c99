//! The graph: what plugins trace into and everything that is decided before a number moves.
//!
//! Owns the arena IR ([`Graph`]), symbolic dimensions ([`Dim`]), the op set ([`op`]), reverse-mode differentiation
//! ([`autodiff`]), rewrite passes ([`passes`]), the memory plan ([`plan`]) and the f64 interpreter ([`interp`]) that is the oracle
//! of all of it. Pure: no files, no kernels, no WASM, no threads.
//!
//! **Invariant:** a node's inputs have smaller indices than the node. Index order is execution order; passes that insert nodes in
//! the middle build a new graph.
#![forbid(unsafe_code)]

pub mod autodiff;
mod build;
pub mod dim;
pub mod dump;
pub mod dynamic8;
mod error;
mod graph;
pub mod hash;
pub mod interp;
pub mod op;
pub mod passes;
pub mod philox;
pub mod plan;
mod types;

pub use dim::{Bindings, Dim, DimOp, SymbolId, SymbolInfo, SymbolTable};
pub use error::{Error, Result};
pub use graph::{
    Effect, Graph, InputId, InputInfo, Limits, Node, NodeId, ParamId, ParamInfo, ScopeId, Site, SiteKind, StateId, StateInfo,
    Target,
};
pub use op::{Op, OpRule};
pub use types::{DType, Float, Shape, Type};
