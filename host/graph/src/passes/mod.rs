//! Graph to graph rewrites. A pass reads one graph and builds another over the same tables; it changes what is computed, never what
//! comes out.
//!
//! A training graph goes through [`before_autodiff`], [`crate::autodiff::differentiate`], [`fold_frozen`] and [`optimize`]; graphs
//! that are not differentiated skip the middle two. Order matters: composites are recognised before differentiation, so that their
//! hand-written gradients are used; frozen parts are folded before elementwise fusion mixes them with the rest; recomputation is
//! chosen on unfused nodes, so that copies fuse with the backward work around them.

mod algebra;
mod cse;
mod dead_code;
mod fold;
mod fuse;
pub mod patterns;
mod recompute;
mod rewrite;
mod schedule;

pub use algebra::{GradientsDone, algebra};
pub use cse::cse;
pub use dead_code::dead_code;
pub use fold::fold_frozen;
pub use fuse::fuse;
pub use recompute::{Recompute, recompute};
pub use schedule::schedule;

pub(crate) use rewrite::live;

use crate::{Graph, Result};

/// Choices of [`optimize`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What the backward pass computes again instead of keeping it.
    pub recompute: Recompute,
}

/// Simplifies a forward graph and finds composites, so that differentiation sees them.
///
/// # Errors
/// Only when a limit of the graph is reached.
pub fn before_autodiff(g: &Graph) -> Result<Graph> {
    let g = algebra(g, GradientsDone::No)?;
    let g = cse(&g)?;
    let g = patterns::dora_norm(&g)?;
    let g = patterns::glu(&g)?;
    let g = epilogues(&g)?;
    // Rewrites may have made equal nodes.
    cse(&g)
}

/// Everything that is done to a complete graph before it is planned.
///
/// # Errors
/// Only when a limit of the graph is reached.
pub fn after_autodiff(g: &Graph, options: &Options) -> Result<Graph> {
    let g = algebra(g, GradientsDone::Yes)?;
    let g = cse(&g)?;
    let g = patterns::dora_norm(&g)?;
    let g = patterns::glu(&g)?;
    let g = algebra(&epilogues(&g)?, GradientsDone::Yes)?;
    let g = dead_code(&patterns::low_rank(&cse(&g)?)?)?;
    let g = dead_code(&patterns::activation(&g)?)?;
    let g = patterns::adam(&g)?;
    let g = recompute(&schedule(&g)?, options.recompute)?;
    fuse(&g)
}

/// Twice, since a sum that became a product may be the addend or the neighbour of another. Rewrites leave their sources behind.
fn epilogues(g: &Graph) -> Result<Graph> {
    let g = dead_code(&patterns::epilogue(g)?)?;
    dead_code(&patterns::epilogue(&g)?)
}

/// [`after_autodiff`] under the name that callers without a backward pass expect.
///
/// # Errors
/// Only when a limit of the graph is reached.
pub fn optimize(g: Graph, options: &Options) -> Result<Graph> {
    after_autodiff(&g, options)
}
