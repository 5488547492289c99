//! Where the memory goes: what `estimate` prints.

use super::layout::bytes;
use super::{Launch, Place, Plan};
use crate::op::OpRule;
use crate::{Bindings, Result};

/// One buffer, as a person looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Bytes, rounded up to the arena's alignment.
    pub bytes: usize,
    /// Scope path of the node that made it.
    pub scope: String,
    /// That node's op.
    pub op: &'static str,
    /// First and last launch, `usize::MAX` for results.
    pub launches: (usize, usize),
    /// Whether the forward pass made it for the backward pass.
    pub kept_for_backward: bool,
}

/// Bytes by what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Size of the arena.
    pub arena: usize,
    /// Most bytes in use at one launch; the arena is larger only by fragmentation.
    pub live_peak: usize,
    /// That launch.
    pub peak_launch: usize,
    /// Scratch of that launch.
    pub peak_scratch: usize,
    /// Bytes that cross from the forward into the backward pass.
    pub kept_for_backward: usize,
    /// Bytes of results.
    pub outputs: usize,
    /// What is in use at the peak, largest first.
    pub at_peak: Vec<Resident>,
}

impl Plan {
    /// Breaks the arena down for one binding.
    ///
    /// # Errors
    /// As [`Plan::layout`].
    pub fn usage(&self, bindings: &Bindings, scratch: &dyn Fn(&Launch) -> Result<usize>) -> Result<Usage> {
        let arena = self.layout(bindings, scratch)?.bytes;
        // The first launch of the backward pass.
        let border = self.graph.backward_start.map(|b| self.launches.partition_point(|l| l.node < b));
        let mut residents: Vec<Option<Resident>> = vec![None; self.buffers.len()];
        for (id, place) in self.graph.ids().zip(&self.places) {
            let Place::Arena(b) = place else { continue };
            let (buffer, node) = (&self.buffers[b.0 as usize], self.graph.node(id));
            if residents[b.0 as usize].is_none() {
                residents[b.0 as usize] = Some(Resident {
                    bytes: bytes(buffer.elements.eval(bindings)?)?,
                    scope: self.graph.scope_path(node.scope),
                    op: node.op.name(),
                    launches: (buffer.first, buffer.last),
                    kept_for_backward: border.is_some_and(|k| buffer.first < k && buffer.last >= k && buffer.last != usize::MAX),
                });
            }
        }
        let residents: Vec<Resident> = residents.into_iter().flatten().collect();
        let mut change = vec![0isize; self.launches.len() + 1];
        for r in &residents {
            change[r.launches.0] += r.bytes as isize;
            if r.launches.1 < self.launches.len() {
                change[r.launches.1 + 1] -= r.bytes as isize;
            }
        }
        let (mut live, mut live_peak, mut peak_launch, mut peak_scratch) = (0isize, 0, 0, 0);
        for (k, launch) in self.launches.iter().enumerate() {
            live += change[k];
            let own = scratch(launch)?;
            let total = live.unsigned_abs() + own;
            if total > live_peak {
                (live_peak, peak_launch, peak_scratch) = (total, k, own);
            }
        }
        let sum = |which: &dyn Fn(&Resident) -> bool| residents.iter().filter(|r| which(r)).map(|r| r.bytes).sum();
        let kept_for_backward = sum(&|r| r.kept_for_backward);
        let outputs = sum(&|r| r.launches.1 == usize::MAX);
        let mut at_peak: Vec<Resident> =
            residents.into_iter().filter(|r| r.launches.0 <= peak_launch && peak_launch <= r.launches.1).collect();
        at_peak.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.launches.cmp(&b.launches)));
        Ok(Usage { arena, live_peak, peak_launch, peak_scratch, kept_for_backward, outputs, at_peak })
    }
}
