//! Common subexpressions: equal ops over equal inputs become one node.
//!
//! Ops compare by all their attributes, so dropouts of different streams never merge. Ops that write a cache, and reads of such
//! caches, stay as they are.

use std::collections::{HashMap, HashSet};

use super::rewrite::{copy_op, rebuild};
use crate::op::{BinaryOp, Op};
use crate::{Graph, NodeId, Result, StateId};

/// Merges equal nodes; the first one stays, in its scope.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn cse(g: &Graph) -> Result<Graph> {
    let mut written: HashSet<StateId> = HashSet::new();
    for node in g.nodes() {
        if let Op::CachedAttention(c) = &node.op {
            written.extend([c.k_cache, c.v_cache]);
        }
    }
    let mut seen: HashMap<(Op, Vec<NodeId>), NodeId> = HashMap::new();
    rebuild(g, |new, id, inputs| {
        let op = &g.node(id).op;
        match op {
            Op::CachedAttention(_) => return Ok(None),
            Op::State(s) if written.contains(&s.id) => return Ok(None),
            _ => {}
        }
        let mut key = inputs.to_vec();
        if matches!(op, Op::Binary(b) if commutes(b.0)) {
            key.sort_unstable();
        }
        let key = (op.clone(), key);
        if let Some(&same) = seen.get(&key) {
            return Ok(Some(same));
        }
        let image = copy_op(new, op, inputs)?;
        seen.insert(key, image);
        Ok(Some(image))
    })
}

fn commutes(f: BinaryOp) -> bool {
    use BinaryOp::*;
    matches!(f, Add | Mul | Min | Max | Eq | Ne | LogicalAnd | LogicalOr)
}
