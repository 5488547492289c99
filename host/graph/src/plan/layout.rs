//! Packing of buffers into one arena: greedy by size (Pisarchyk and Lee 2020), best fit, deterministic.

use super::{Launch, Layout, Plan};
use crate::{Bindings, Error, Result};

/// Offsets are multiples of a cache line, which is also the widest vector.
const ALIGN: usize = 64;

/// A stretch of bytes for a stretch of launches, both ends inclusive in time.
#[derive(Clone, Copy)]
struct Block {
    offset: usize,
    end: usize,
    first: u32,
    last: u32,
}

/// What is still to be placed.
struct Item {
    size: usize,
    first: u32,
    last: u32,
    /// Index among buffers, then launches' scratch.
    index: usize,
}

impl Plan {
    /// Places all buffers and scratch areas for one binding of the symbols. `scratch` gives the bytes that a launch needs for itself.
    ///
    /// # Errors
    /// When a symbol is unbound or sizes overflow.
    pub fn layout(&self, bindings: &Bindings, scratch: &dyn Fn(&Launch) -> Result<usize>) -> Result<Layout> {
        let mut items = Vec::with_capacity(self.buffers.len() + self.launches.len());
        for (index, buffer) in self.buffers.iter().enumerate() {
            let size = bytes(buffer.elements.eval(bindings)?)?;
            let last = u32::try_from(buffer.last).unwrap_or(u32::MAX);
            items.push(Item { size, first: buffer.first as u32, last, index });
        }
        for (k, launch) in self.launches.iter().enumerate() {
            let size = round_up(scratch(launch)?)?;
            items.push(Item { size, first: k as u32, last: k as u32, index: self.buffers.len() + k });
        }
        items.retain(|i| i.size > 0);
        items.sort_by(|a, b| b.size.cmp(&a.size).then(a.first.cmp(&b.first)).then(a.index.cmp(&b.index)));

        let mut arena = Arena::new(self.launches.len() as u32);
        let mut offsets = vec![0; self.buffers.len() + self.launches.len()];
        let mut end = 0;
        for item in &items {
            let block = arena.place(item)?;
            offsets[item.index] = block.offset;
            end = end.max(block.end);
        }
        let scratch = offsets.split_off(self.buffers.len());
        Ok(Layout { offsets, scratch, bytes: end })
    }

    /// Bytes of the arena for one binding.
    ///
    /// # Errors
    /// As [`Plan::layout`].
    pub fn peak_bytes(&self, bindings: &Bindings, scratch: &dyn Fn(&Launch) -> Result<usize>) -> Result<usize> {
        Ok(self.layout(bindings, scratch)?.bytes)
    }
}

fn overflow() -> Error {
    Error::Dim("buffer size overflows the address space".into())
}

pub(super) fn bytes(elements: u64) -> Result<usize> {
    let bytes = elements.checked_mul(4).and_then(|b| usize::try_from(b).ok()).ok_or_else(overflow)?;
    round_up(bytes)
}

fn round_up(bytes: usize) -> Result<usize> {
    bytes.checked_next_multiple_of(ALIGN).ok_or_else(overflow)
}

/// Placed blocks in order of offset: all of them, and by windows of launches, so that a short-lived block, as most are, looks only
/// at its own time. In a window, neighbours that fill it from end to end count as one, which keeps the lists short.
struct Arena {
    all: Vec<Block>,
    /// Blocks that are not in `all` yet: only long-lived blocks need it.
    pending: Vec<Block>,
    windows: Vec<Vec<Block>>,
    width: u32,
}

impl Arena {
    fn new(launches: u32) -> Arena {
        let width = (launches / 64).max(16);
        Arena { all: Vec::new(), pending: Vec::new(), windows: vec![Vec::new(); (launches / width + 1) as usize], width }
    }

    fn place(&mut self, item: &Item) -> Result<Block> {
        let last_window = self.windows.len() - 1;
        let (from, to) = ((item.first / self.width) as usize, ((item.last / self.width) as usize).min(last_window));
        let offset = if from == to {
            best_fit(&self.windows[from], item)
        } else {
            self.all.append(&mut self.pending);
            // Nearly sorted, which this sort takes advantage of.
            self.all.sort_by_key(|b| b.offset);
            best_fit(&self.all, item)
        };
        let end = offset.checked_add(item.size).ok_or_else(overflow)?;
        let block = Block { offset, end, first: item.first, last: item.last };
        self.pending.push(block);
        for (k, window) in (from..).zip(&mut self.windows[from..=to]) {
            let (first, last) = (k as u32 * self.width, (k as u32 + 1) * self.width - 1);
            insert(window, block, |b| b.first <= first && b.last >= last);
        }
        Ok(block)
    }
}

/// Adds a block to a window's list, joined to a neighbour if both fill the window.
fn insert(window: &mut Vec<Block>, block: Block, fills: impl Fn(&Block) -> bool) {
    let at = window.partition_point(|b| b.offset <= block.offset);
    let joins = |a: &Block, b: &Block| a.end == b.offset && fills(a) && fills(b);
    if at > 0 && joins(&window[at - 1], &block) {
        window[at - 1].end = block.end;
        if at < window.len() && joins(&window[at - 1], &window[at]) {
            window[at - 1].end = window[at].end;
            window.remove(at);
        }
    } else if at < window.len() && joins(&block, &window[at]) {
        window[at].offset = block.offset;
    } else {
        window.insert(at, block);
    }
}

fn overlaps(b: &Block, item: &Item) -> bool {
    b.first <= item.last && item.first <= b.last
}

/// The smallest gap that fits between blocks of the same time, given in order of offset; else the end.
fn best_fit(blocks: &[Block], item: &Item) -> usize {
    let (mut cursor, mut best, mut best_gap) = (0, None, usize::MAX);
    for b in blocks.iter().filter(|b| overlaps(b, item)) {
        let gap = b.offset.saturating_sub(cursor);
        if gap >= item.size && gap < best_gap {
            (best, best_gap) = (Some(cursor), gap);
            if gap == item.size {
                break;
            }
        }
        cursor = cursor.max(b.end);
    }
    best.unwrap_or(cursor)
}
