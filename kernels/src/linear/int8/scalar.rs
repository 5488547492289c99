//! The products, one number after the other: the specification.

use super::panel::{Block, PANEL};
use super::rows::BLOCK;
use super::{SHIFT, Tile};

/// # Safety
/// See [`super::TileFn`].
pub(super) unsafe fn tile(t: &Tile) {
    let groups = t.kind.groups;
    let len = BLOCK / groups;
    for token in 0..t.tokens {
        for row in 0..t.panels * PANEL {
            let (panel, row) = (row / PANEL, row % PANEL);
            // SAFETY: a sum of the tile.
            let acc = unsafe { &mut *t.acc.add(panel * t.acc_stride + token * PANEL + row) };
            for index in 0..t.count {
                // SAFETY: blocks and lines of the tile.
                let (block, line) = unsafe {
                    let blocks = t.data.add(panel * t.data_stride).cast::<Block>();
                    (&*blocks.add(index), &*t.lines.add(index * t.stride + token))
                };
                let mut sum = 0.0;
                for group in 0..groups {
                    let products = (group * len..(group + 1) * len).map(|i| {
                        let q = i32::from(block.levels[i / 4 * 4 * PANEL + row * 4 + i % 4]);
                        let q = if t.kind.signed { q - 128 } else { q };
                        q * i32::from(line.p[i])
                    });
                    let (products, scale) = (products.sum::<i32>() as f32, block.scales[group][row]);
                    sum = match group {
                        0 => (SHIFT + products).mul_add(scale, -SHIFT * scale),
                        _ => products.mul_add(scale, sum),
                    };
                    if !t.kind.signed {
                        let activations = if groups == 1 { line.sum } else { line.halves[group] };
                        sum = block.minima[group][row].mul_add(activations, sum);
                    }
                }
                *acc = sum.mul_add(line.d, *acc);
            }
        }
    }
}
