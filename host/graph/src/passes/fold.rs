//! Frozen folding: what depends on frozen parameters and constants only, and comes out small, is computed once.
//!
//! A small result is replaced by a state `folded.<digest>`; a prologue graph computes it and writes the state. The digest covers ops,
//! shapes and parameter names, so graphs that share a weight store share folded values too. The prologue computes one result
//! after the other, so it holds one dense weight at a time.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};

use super::rewrite::{Rebuild, live};
use crate::op::{self, Op};
use crate::{Graph, NodeId, ParamId, Result, Target};

/// A result is small if it has at most this share of the elements of the parameters that it is computed from ...
const SHARE: u64 = 8;
/// ... or at most this many elements: a vector of a layer costs less memory than its launch costs time.
const ALWAYS_SMALL: u64 = 1 << 14;

/// Splits `g` into the graph to run and the prologue, if anything was folded. Run the prologue once after the weights are loaded.
///
/// # Errors
/// Only when a limit of the graph is reached.
pub fn fold_frozen(g: &Graph) -> Result<(Graph, Option<Graph>)> {
    let live = live(g);
    let frozen = frozen_sources(g);
    let small = |id: NodeId| {
        let Some(sources) = &frozen[id.index()] else { return false };
        let params: u64 = sources.iter().map(|p| g.params()[p.index()].shape.iter().product::<u64>()).sum();
        let elements = g.ty(id).shape.elements().ok().and_then(|e| e.as_fixed());
        !sources.is_empty() && computes(g, id) && elements.is_some_and(|e| e <= (params / SHARE).max(ALWAYS_SMALL))
    };
    // From the results backwards: what is needed and small becomes a state, and nothing behind it is needed.
    let mut needed = vec![false; g.len()];
    g.outputs.iter().for_each(|(_, id)| needed[id.index()] = true);
    g.effects.iter().for_each(|e| needed[e.value.index()] = true);
    let mut folded = vec![false; g.len()];
    for id in g.ids().rev().filter(|id| live[id.index()]) {
        needed[id.index()] |= matches!(g.node(id).op, Op::CachedAttention(_));
        if !needed[id.index()] {
            continue;
        }
        folded[id.index()] = small(id);
        if !folded[id.index()] {
            g.node(id).inputs.iter().for_each(|i| needed[i.index()] = true);
        }
    }
    let roots: Vec<NodeId> = g.ids().filter(|id| folded[id.index()]).collect();
    if roots.is_empty() {
        return Ok((super::dead_code(g)?, None));
    }
    let digests = digests(g, &frozen);
    let name = |id: NodeId| {
        let hex: String = digests[id.index()].iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("folded.{hex}")
    };

    let mut main = Rebuild::new(g);
    for id in g.ids() {
        if g.backward_start == Some(id) {
            main.mark_backward();
        }
        if !needed[id.index()] || !live[id.index()] {
            continue;
        }
        let image = if folded[id.index()] {
            main.new.set_scope(g.node(id).scope);
            let state = main.new.declare_state(&name(id), g.ty(id).clone())?;
            main.new.read_state(state)?
        } else {
            let inputs = main.inputs(id);
            main.copy(id, &inputs)?
        };
        main.set(id, image);
    }

    let mut prologue = Rebuild::new(g);
    let mut written = HashSet::new();
    for &root in &roots {
        copy_depth_first(g, &mut prologue, root)?;
        let state = prologue.new.declare_state(&name(root), g.ty(root).clone())?;
        if written.insert(state) {
            let value = prologue.at(root);
            prologue.new.write(Target::State(state), value, false)?;
        }
    }
    prologue.new.set_scope(crate::ScopeId(0));
    Ok((main.finish(), Some(prologue.new)))
}

/// The parameters that a node depends on, or `None` where it depends on anything that may change.
fn frozen_sources(g: &Graph) -> Vec<Option<HashSet<ParamId>>> {
    let written: HashSet<Target> = g.effects.iter().map(|e| e.target).collect();
    let mut all: Vec<Option<HashSet<ParamId>>> = Vec::with_capacity(g.len());
    for node in g.nodes() {
        let sources = match &node.op {
            Op::Param(p) => {
                let fixed = !g.params()[p.id.index()].trainable && !written.contains(&Target::Param(p.id));
                fixed.then(|| HashSet::from([p.id]))
            }
            Op::Input(_) | Op::State(_) | Op::CachedAttention(_) | Op::Dropout(_) => None,
            _ if node.outputs.iter().any(|t| t.shape.iter().any(|d| d.as_fixed().is_none())) => None,
            _ => node.inputs.iter().try_fold(HashSet::new(), |mut set, i| {
                set.extend(all[i.index()].as_ref()?.iter().copied());
                Some(set)
            }),
        };
        all.push(sources);
    }
    all
}

/// Whether the node is more than a view of something stored.
fn computes(g: &Graph, id: NodeId) -> bool {
    match &g.node(id).op {
        Op::Param(_) | Op::Constant(_) | Op::Full(_) | Op::Iota(_) => false,
        Op::Read(_) | Op::Reshape(_) | Op::StopGrad(_) | Op::Cast(_) => computes(g, g.node(id).inputs[0]),
        _ => true,
    }
}

/// Copies what `id` needs right before it. The stack is explicit: chains of a plugin may be long.
fn copy_depth_first(g: &Graph, r: &mut Rebuild<'_>, id: NodeId) -> Result<()> {
    let mut stack = vec![id];
    while let Some(&top) = stack.last() {
        let missing: Vec<NodeId> = g.node(top).inputs.iter().copied().filter(|&i| r.get(i).is_none()).collect();
        if r.get(top).is_some() {
            stack.pop();
        } else if missing.is_empty() {
            let inputs = r.inputs(top);
            let image = r.copy(top, &inputs)?;
            r.set(top, image);
            stack.pop();
        } else {
            stack.extend(missing.into_iter().rev());
        }
    }
    Ok(())
}

struct Sha(Sha256);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        0
    }
}

/// A digest of each frozen node's whole expression; empty for others.
fn digests(g: &Graph, frozen: &[Option<HashSet<ParamId>>]) -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::with_capacity(g.len());
    for (node, frozen) in g.nodes().iter().zip(frozen) {
        if frozen.is_none() {
            all.push(Vec::new());
            continue;
        }
        let mut sha = Sha(Sha256::new());
        match &node.op {
            Op::Param(op::Param { id }) => g.params()[id.index()].name.hash(&mut sha),
            other => other.hash(&mut sha),
        }
        node.inputs.iter().for_each(|i| sha.write(&all[i.index()]));
        all.push(sha.0.finalize().to_vec());
    }
    all
}
