//! The products, one number after the other: the specification.

use super::{SHIFT, Tile};
use crate::panels::{BLOCK, Block, PANEL, SUMMED};

/// # Safety
/// See [`super::TileFn`].
pub(super) unsafe fn tile(t: &Tile) {
    let groups = t.kind.groups;
    let len = BLOCK / groups;
    let summed = if groups == 1 { t.count.max(1) } else { SUMMED };
    for token in 0..t.tokens {
        for row in 0..t.panels * PANEL {
            let (panel, row) = (row / PANEL, row % PANEL);
            // SAFETY: a sum of the tile.
            let total = unsafe { &mut *t.acc.add(panel * t.acc_stride + token * PANEL + row) };
            for first in (0..t.count).step_by(summed) {
                let mut acc = if groups == 1 { *total } else { 0.0 };
                for index in first..first + summed {
                    // SAFETY: blocks and lines of the tile, which has whole units of blocks.
                    let (block, line) = unsafe {
                        let blocks = t.data.add(panel * t.data_stride).cast::<Block>();
                        (&*blocks.add(index), &*t.lines.add(index * t.stride + token))
                    };
                    for group in 0..groups {
                        let products = (group * len..(group + 1) * len).map(|i| {
                            let q = i32::from(block.levels[i / 4 * 4 * PANEL + row * 4 + i % 4]);
                            let q = if t.kind.signed { q - 128 } else { q };
                            q * i32::from(line.p[i])
                        });
                        let (products, scale) = (products.sum::<i32>() as f32, block.scales[group][row]);
                        let mut sum = (SHIFT + products).mul_add(scale, -SHIFT * scale);
                        if !t.kind.signed {
                            let activations = if groups == 1 { line.sum } else { line.halves[group] };
                            sum = block.minima[group][row].mul_add(activations, sum);
                        }
                        acc = sum.mul_add(line.d, acc);
                    }
                }
                *total = if groups == 1 { acc } else { *total + acc };
            }
        }
    }
}
