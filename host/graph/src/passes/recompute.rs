//! Recomputation: what the backward pass computes again instead of keeping it since the forward pass.
//!
//! A forward value that a backward node reads must be kept, unless a copy of its node runs in the backward pass right before the
//! first reader. That pays where the node is cheap and what it reads is there anyway.
//!
//! A scope may wish otherwise ([`Graph::wish_recompute`]): what it wants kept is never computed again, and what it wants computed again
//! counts as cheap, whatever its op and size. Chains stay bounded.

use std::collections::HashSet;

use super::rewrite::{Rebuild, live};
use crate::op::Op;
use crate::{Bindings, Graph, NodeId, Result, SymbolId};

/// How much is computed twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Nothing.
    None,
    /// Elementwise work, norms and gated activations whose inputs are kept anyway.
    #[default]
    Cheap,
    /// Whole layers (gradient checkpointing): only values that pass from one `layers.N` scope to another are kept.
    Layers,
}

/// Longest chain of copies that one value may need. Without a bound a residual stream could be computed again from its very start,
/// and all of it would be there at once when the backward pass begins.
const MAX_CHAIN: u32 = 6;
/// How much longer a chain may be that ends in a norm, an activation or the like: residual streams do not pass through them, so
/// they do not add up from layer to layer.
const MAX_END: u32 = 2;
/// Values below this many bytes are kept: they cost less memory than a launch costs time.
const WORTHWHILE: u64 = 64 << 10;
/// What a symbol counts as when sizes are compared and nothing is known of it.
const NOMINAL: u64 = 1024;

/// Replaces kept forward values by copies in the backward pass. Does nothing to a graph without one.
///
/// # Errors
/// Only when a limit of the graph is reached.
pub fn recompute(g: &Graph, how: Recompute) -> Result<Graph> {
    let Some(border) = g.backward_start.filter(|_| how != Recompute::None) else { return super::dead_code(g) };
    let live = live(g);
    let mut kept: HashSet<NodeId> = HashSet::new();
    for id in g.ids().skip(border.index()).filter(|id| live[id.index()]) {
        kept.extend(g.node(id).inputs.iter().copied().filter(|&i| i < border).map(|i| storage(g, i)));
    }
    let again = match how {
        Recompute::Layers => layers(g, border, &live),
        _ => cheap(g, kept),
    };
    let mut r = Rebuild::new(g);
    // Images of forward nodes as the backward pass sees them.
    let mut copies: Vec<Option<NodeId>> = vec![None; g.len()];
    for id in g.ids() {
        if id == border {
            r.mark_backward();
        }
        if !live[id.index()] {
            continue;
        }
        let inputs = g.node(id).inputs.clone();
        let inputs = if id < border {
            inputs.iter().map(|&i| r.at(i)).collect::<Vec<_>>()
        } else {
            inputs.iter().map(|&i| backward_image(g, &mut r, &mut copies, &again, border, i)).collect::<Result<_>>()?
        };
        let image = r.copy(id, &inputs)?;
        r.set(id, image);
    }
    super::dead_code(&r.finish())
}

/// The node that the backward pass reads for `id`: a copy, made on first use, if it is computed again.
fn backward_image(
    g: &Graph,
    r: &mut Rebuild<'_>,
    copies: &mut [Option<NodeId>],
    again: &[bool],
    border: NodeId,
    id: NodeId,
) -> Result<NodeId> {
    if id >= border || !again[storage(g, id).index()] {
        return Ok(r.at(id));
    }
    if let Some(copy) = copies[id.index()] {
        return Ok(copy);
    }
    let inputs = &g.node(id).inputs;
    let images = inputs.iter().map(|&i| backward_image(g, r, copies, again, border, i)).collect::<Result<Vec<_>>>()?;
    let copy = r.copy(id, &images)?;
    copies[id.index()] = Some(copy);
    Ok(copy)
}

/// The node whose bytes `id` shows.
fn storage(g: &Graph, mut id: NodeId) -> NodeId {
    while let Op::Reshape(_) | Op::StopGrad(_) = g.node(id).op {
        id = g.node(id).inputs[0];
    }
    id
}

/// What lives outside the arena, whoever reads it.
fn free(g: &Graph, id: NodeId) -> bool {
    match &g.node(id).op {
        Op::Input(_) | Op::Param(_) | Op::State(_) | Op::Constant(_) | Op::Full(_) | Op::Iota(_) => true,
        Op::Read(_) => free(g, g.node(id).inputs[0]),
        _ => false,
    }
}

/// One pass over memory, no product, unless its scope wishes otherwise.
fn is_cheap(g: &Graph, id: NodeId) -> bool {
    match wish(g, id) {
        Some(again) => again && !matches!(g.node(id).op, Op::CachedAttention(_)),
        None => is_cheap_op(g, id),
    }
}

fn wish(g: &Graph, id: NodeId) -> Option<bool> {
    g.recompute_wish(g.node(id).scope)
}

fn is_cheap_op(g: &Graph, id: NodeId) -> bool {
    match &g.node(id).op {
        Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_) | Op::Fused(_) | Op::Expand(_) => true,
        Op::RmsNorm(_) | Op::Glu(_) | Op::Rope(_) | Op::Dropout(_) => true,
        // A permuted, sliced or repeated value is a copy of something.
        Op::Permute(_) | Op::Slice(_) | Op::Concat(_) | Op::Pad(_) | Op::GatherRows(_) | Op::Embed(_) => true,
        Op::Part(_) => is_cheap(g, g.node(id).inputs[0]),
        _ => false,
    }
}

fn nominal_bytes(g: &Graph, id: NodeId) -> u64 {
    let mut bindings = Bindings::new();
    for s in 0..g.symbols.len() as u32 {
        let id = SymbolId(s);
        let (lo, hi) = g.symbols.get(id).map_or((1, None), |s| (s.lo, s.hi));
        let nominal = if id == SymbolId::TOKENS || s > SymbolId::PAIRS.0 { NOMINAL } else { 4 };
        bindings.set(id, nominal.clamp(lo, hi.unwrap_or(u64::MAX).max(lo)));
    }
    let elements = g.ty(id).shape.elements().and_then(|e| e.eval(&bindings));
    elements.map_or(u64::MAX, |e| e.saturating_mul(4))
}

/// Cheap values whose inputs are there anyway, or need less memory than they do.
fn cheap(g: &Graph, kept: HashSet<NodeId>) -> Vec<bool> {
    let mut order: Vec<NodeId> = kept.iter().copied().collect();
    order.sort_unstable();
    let mut choice = Choice { g, kept, height: vec![0; g.len()] };
    for id in order {
        if free(g, id) || !is_cheap(g, id) || (wish(g, id).is_none() && nominal_bytes(g, id) < WORTHWHILE) {
            continue;
        }
        let mut found = Trace::default();
        if !choice.trace(id, 0, &mut found) {
            continue;
        }
        found.missing.sort_unstable();
        found.missing.dedup();
        let cost: u64 = found.missing.iter().map(|&m| nominal_bytes(g, m)).fold(0, u64::saturating_add);
        if cost < nominal_bytes(g, id) {
            choice.kept.remove(&id);
            choice.kept.extend(found.missing);
            // Inputs come after their readers in the chain.
            for &c in found.chain.iter().rev() {
                choice.height[c.index()] = choice.height_over_inputs(c);
            }
        }
    }
    choice.height.iter().map(|&h| h > 0).collect()
}

struct Choice<'a> {
    g: &'a Graph,
    /// Forward values that the backward pass finds in memory.
    kept: HashSet<NodeId>,
    /// Copies that stand between a value and memory; zero for values that are not computed again.
    height: Vec<u32>,
}

/// What computing a value again would take.
#[derive(Default)]
struct Trace {
    /// Nodes to copy.
    chain: Vec<NodeId>,
    /// Values that would have to be kept.
    missing: Vec<NodeId>,
}

impl Choice<'_> {
    fn height_over_inputs(&self, id: NodeId) -> u32 {
        1 + self.g.node(id).inputs.iter().map(|&i| self.height[storage(self.g, i).index()]).max().unwrap_or(0)
    }

    /// Collects what `id` needs; false if the chain would get too long.
    fn trace(&self, id: NodeId, depth: u32, found: &mut Trace) -> bool {
        let g = self.g;
        let end = !matches!(g.node(id).op, Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_));
        if depth + self.height_over_inputs(id) > MAX_CHAIN + if end { MAX_END } else { 0 } {
            return false;
        }
        found.chain.push(id);
        let part = matches!(g.node(id).op, Op::Part(_));
        for &input in &g.node(id).inputs {
            let at = storage(g, input);
            if self.height[at.index()] > 0 || found.chain.contains(&at) || free(g, at) {
                continue;
            }
            // A part's producer has to run again, whether its own value is kept or not.
            if self.kept.contains(&at) && !part {
                continue;
            }
            let (chain, missing) = (found.chain.len(), found.missing.len());
            let follow = is_cheap(g, at) && self.trace(at, depth + 1, found) && found.missing.len() == missing;
            if !follow {
                found.chain.truncate(chain);
                found.missing.truncate(missing);
                if part {
                    return false;
                }
                found.missing.push(at);
            }
        }
        true
    }
}

/// Nodes of a layer whose value no other layer's forward pass reads.
fn layers(g: &Graph, border: NodeId, live: &[bool]) -> Vec<bool> {
    let layer: Vec<Option<String>> = g.nodes().iter().map(|n| layer_of(&g.scope_path(n.scope))).collect();
    let mut again: Vec<bool> = g
        .ids()
        .map(|id| {
            let inside = id < border && wish(g, id).unwrap_or(layer[id.index()].is_some());
            inside && !free(g, id) && !matches!(g.node(id).op, Op::CachedAttention(_))
        })
        .collect();
    for id in g.ids().take(border.index()).filter(|id| live[id.index()]) {
        for &input in &g.node(id).inputs {
            let at = storage(g, input);
            if layer[at.index()] != layer[id.index()] {
                again[at.index()] = false;
            }
        }
    }
    for value in g.outputs.iter().map(|(_, id)| *id).chain(g.effects.iter().map(|e| e.value)) {
        again[storage(g, value).index()] = false;
    }
    // A part cannot be copied without its producer, nor the other way round.
    for id in g.ids().take(border.index()) {
        if matches!(g.node(id).op, Op::Part(_)) {
            let producer = g.node(id).inputs[0];
            let both = again[id.index()] && again[producer.index()];
            again[id.index()] = both;
        }
    }
    again
}

/// The path up to and with the first `layers.N` (also `h.N`, `blocks.N`).
fn layer_of(path: &str) -> Option<String> {
    let mut previous = "";
    let mut end = 0;
    for piece in path.split_inclusive(['/', '.']) {
        end += piece.len();
        let name = piece.trim_end_matches(['/', '.']);
        if matches!(previous, "layers" | "layer" | "h" | "blocks") && !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit())
        {
            return Some(path[..end].trim_end_matches(['/', '.']).to_string());
        }
        previous = name;
    }
    None
}
