//! Order of execution. Differentiation reads further outputs of forward nodes where it needs them; here each [`crate::op::Part`]
//! moves right behind its producer, so that whoever asks what the backward pass keeps sees the output that it reads and not the
//! producer's other outputs. Equal parts become one. Repeated numbers, which have no inputs, move right before their first reader, or
//! to the end if only an effect wants them: zeros that clear a gradient are then written over it, not copied.

use std::collections::HashMap;

use super::rewrite::{Rebuild, live};
use crate::op::Op;
use crate::{Graph, NodeId, Result};

/// Moves further outputs to their producers, and repeated numbers to their readers.
///
/// # Errors
/// Never for a valid graph; rebuilding checks every node again.
pub fn schedule(g: &Graph) -> Result<Graph> {
    let live = live(g);
    let mut parts: HashMap<NodeId, Vec<(u8, NodeId)>> = HashMap::new();
    for id in g.ids().filter(|id| live[id.index()]) {
        if let Op::Part(p) = &g.node(id).op {
            parts.entry(g.node(id).inputs[0]).or_default().push((p.index, id));
        }
    }
    parts.values_mut().for_each(|list| list.sort_unstable());
    let mut r = Rebuild::new(g);
    for id in g.ids() {
        if g.backward_start == Some(id) {
            r.mark_backward();
        }
        if !live[id.index()] || r.get(id).is_some() || sinks(&g.node(id).op) {
            continue;
        }
        for &input in &g.node(id).inputs {
            if r.get(input).is_none() {
                let image = r.copy(input, &[])?;
                r.set(input, image);
            }
        }
        let inputs = r.inputs(id);
        let image = r.copy(id, &inputs)?;
        r.set(id, image);
        let mut previous = None;
        for &(index, part) in parts.get(&id).into_iter().flatten() {
            let copy = match previous {
                Some((same, copy)) if same == index => copy,
                _ => r.new.part(image, index)?,
            };
            previous = Some((index, copy));
            r.set(part, copy);
        }
    }
    for id in g.ids().filter(|id| live[id.index()]) {
        if r.get(id).is_none() {
            let image = r.copy(id, &[])?;
            r.set(id, image);
        }
    }
    Ok(r.finish())
}

fn sinks(op: &Op) -> bool {
    matches!(op, Op::Full(_) | Op::Iota(_))
}
