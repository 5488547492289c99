//! Dead code: nodes that no output and no effect depends on.

use super::rewrite::rebuild;
use crate::{Graph, Result};

/// Drops nodes that nothing reads.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn dead_code(g: &Graph) -> Result<Graph> {
    rebuild(g, |_, _, _| Ok(None))
}
