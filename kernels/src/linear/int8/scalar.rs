//! The products, one number after the other: the specification.

use super::Tile;
use super::panel::PANEL;
use super::rows::BLOCK;

/// # Safety
/// See [`super::TileFn`].
pub(super) unsafe fn tile(t: &Tile) {
    let groups = t.kind.groups;
    let len = BLOCK / groups;
    for token in 0..t.tokens {
        for row in 0..PANEL {
            // SAFETY: a sum of the tile.
            let acc = unsafe { &mut *t.acc.add(token * PANEL + row) };
            for index in 0..t.count {
                // SAFETY: blocks, activations and records of the tile.
                let (block, p, record) = unsafe {
                    let p = t.x.add(token * t.x_stride + index * BLOCK).cast::<[i8; BLOCK]>();
                    (&*t.blocks.add(index), &*p, &*t.records.add(token * t.record_stride + index))
                };
                for group in 0..groups {
                    let products = (group * len..(group + 1) * len).map(|i| {
                        let q = block.levels[i / 4 * 4 * PANEL + row * 4 + i % 4];
                        let q = if t.kind.signed { i32::from(q as i8) } else { i32::from(q) };
                        q * i32::from(p[i])
                    });
                    *acc = (products.sum::<i32>() as f32).mul_add(block.scales[group][row] * record.d, *acc);
                    if !t.kind.signed {
                        let sum = if groups == 1 { record.sum } else { record.halves[group] };
                        *acc = block.minima[group][row].mul_add(sum, *acc);
                    }
                }
            }
        }
    }
}
