//! AMX products: a tile of activations, rows of 32 bytes as their lines hold them, times a block's levels, which lie in cache as a
//! tile does, is a tile of whole sums (`tdpbssd`).
//!
//! Sums go through memory, as there is no other way from tiles to vectors, and are scaled as on AVX-512. Of three blocks of a panel
//! one is multiplied, one written and one scaled at a time, and panels take turns, so that no unit waits for another.
//!
//! What bounds this, in cycles for 12 rows of a block: writing a tile takes 16, in which nothing else is issued, however few its
//! rows; and for some hundred cycles after any tile instruction only one of the two ports multiplies 512 bits, so that two
//! multiply-adds of each sum take 24, where eight `vpdpbusd` and the same take 60 on both. Additions keep both ports, which is why
//! sums become floats by adding [`START`]: a conversion counts as a multiplication. With data at hand 35 were reached. Rejected:
//!
//! - Formats with a minimum, and so three multiply-adds: 0.9 to 1.05 of the rate of AVX-512 for Q4_1. They stay there.
//! - Formats with two groups in a block, whose tiles are half as deep: 0.88 of the rate of AVX-512 for Q6_K. They stay there.
//! - Sums that start at [`START`] because their tile is loaded with it: slower than adding it.
//! - Levels with 128 added, as on AVX-512, and a start of each row's own: 0.8 of the rate, for one more load of each sum. It would let
//!   AVX-512 multiply the last rows, where now a whole tile is padded.
//! - Tiles of 16 rows, of one panel at a time: 5% faster with data at hand, but the other levels take 12.
//! - Phases of multiplication and of scaling, each some blocks long: the ports come back after more cycles than fit L1.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::rows::{Line, START, TILE};
use super::{PAIR, SHIFT, Tile};
use crate::amx::{self, ROW_BYTES, Shapes, Tiles};
use crate::panels::{BLOCK, Block, Kind, PANEL};

/// The tile registers in the shapes that [`tile`] needs: sums, activations and levels.
///
/// # Safety
/// See [`Tiles::shaped`].
pub(super) unsafe fn take() -> Tiles {
    const SHAPES: Shapes = {
        let (sums, activations, levels) = ((TILE, 4 * PANEL), (TILE, BLOCK), (BLOCK / 4, 4 * PANEL));
        Shapes::of([sums, sums, activations, levels, levels, levels, levels, levels])
    };
    // SAFETY: by the caller's promise.
    unsafe { Tiles::shaped(const { &SHAPES }) }
}

/// Whether tiles pay: levels are signed, blocks have one group, and few rows are padded.
pub(super) fn pays(kind: Kind, m: usize) -> bool {
    kind.signed && kind.groups == 1 && (m.next_multiple_of(TILE) - m) * 16 <= m
}

/// Products with blocks of one group of signed levels.
///
/// # Safety
/// See [`super::TileFn`]; the data are blocks, and the registers have been taken by [`take`].
pub(super) unsafe fn tile(t: &Tile) {
    // SAFETY: the selected function has the same contract.
    unsafe {
        match (t.count, t.panels) {
            (0, _) => {}
            (_, 1) => padded::<1>(t),
            _ => padded::<PAIR>(t),
        }
    }
}

/// Blocks of a tile with fewer rows that are padded at a time.
const PADDED: usize = 16;

/// Tiles of any number of rows: those that a whole one has more are zero, and their products are dropped.
///
/// # Safety
/// See [`tile`]; there are `P` panels.
unsafe fn padded<const P: usize>(t: &Tile) {
    if t.tokens == TILE {
        // SAFETY: whole tiles.
        return unsafe { product::<P>(t) };
    }
    let mut lines = [Line::default(); PADDED * TILE];
    let mut acc = [[[0f32; PANEL]; TILE]; P];
    // SAFETY: as many sums and lines as the tile has rows, for each panel and block; then a whole tile of them.
    unsafe {
        for (panel, acc) in acc.iter_mut().enumerate() {
            t.acc.add(panel * t.acc_stride).copy_to_nonoverlapping(acc.as_mut_ptr().cast(), t.tokens * PANEL);
        }
        for start in (0..t.count).step_by(PADDED) {
            let count = PADDED.min(t.count - start);
            for (index, lines) in lines.chunks_exact_mut(TILE).enumerate().take(count) {
                t.lines.add((start + index) * t.stride).copy_to_nonoverlapping(lines.as_mut_ptr(), t.tokens);
            }
            product::<P>(&Tile {
                data: t.data.add(start * size_of::<Block>()),
                count,
                lines: lines.as_ptr(),
                stride: TILE,
                acc: acc.as_mut_ptr().cast(),
                acc_stride: TILE * PANEL,
                tokens: TILE,
                ahead: t.ahead.wrapping_add(start * t.fetched),
                ..*t
            });
        }
        for (panel, acc) in acc.iter().enumerate() {
            t.acc.add(panel * t.acc_stride).copy_from_nonoverlapping(acc.as_ptr().cast(), t.tokens * PANEL);
        }
    }
}

/// Sums of a block in memory.
#[repr(C, align(64))]
struct Sums<const P: usize>([[[i32; PANEL]; TILE]; P]);

/// Multiplies the activations in tile 2 by the levels at `$from` into tile `$sum`.
macro_rules! multiply {
    ($sum:literal, $levels:literal, $from:expr) => {
        amx::load!($levels, $from);
        amx::zero!($sum);
        amx::multiply!("tdpbssd", $sum, 2, $levels);
    };
}

/// Products of `P` panels with whole tiles.
///
/// # Safety
/// See [`tile`]; there are `P` panels and [`TILE`] rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[expect(clippy::needless_range_loop, reason = "constant trip counts, unrolled into registers")]
unsafe fn product<const P: usize>(t: &Tile) {
    const { assert!(P <= 2) };
    let start = _mm512_set1_epi32(START);
    let mut kept = [const { MaybeUninit::<Sums<P>>::uninit() }; 2];
    let kept = kept.as_mut_ptr().cast::<[[__m512i; TILE]; P]>();
    // SAFETY: `P` panels with whole tiles of sums and lines, and `count` blocks, by the caller's promise; lines start with
    // 32 bytes; fetching ahead touches nothing; the sums of a block are scaled when they have been written.
    unsafe {
        // The next block to be multiplied, and its tile.
        let (mut index, mut lines, mut tile) = (0, t.lines, t.lines);
        let mut multiply = |panel: usize| {
            let levels = t.data.add(panel * t.data_stride).cast::<Block>().add(index);
            if panel == 0 {
                amx::load!(2, lines);
                multiply!(0, 3, levels);
            } else {
                multiply!(1, 4, levels);
            }
            if panel + 1 == P {
                (index, lines) = (index + 1, lines.add(t.stride));
                if index == t.count {
                    tile = tile.wrapping_add(t.next);
                    (index, lines) = (0, tile);
                }
            }
        };
        let write = |panel: usize, block: usize| {
            let to = kept.add(block % 2).cast::<[__m512i; TILE]>().add(panel);
            if panel == 0 {
                amx::store!(0, to, ROW_BYTES);
            } else {
                amx::store!(1, to, ROW_BYTES);
            }
        };
        let blocks = t.tiles * t.count;
        for panel in 0..P {
            multiply(panel);
        }
        for panel in 0..P {
            write(panel, 0);
            if blocks > 1 {
                multiply(panel);
            }
        }
        for tile in 0..t.tiles {
            let mut acc = [[_mm512_setzero_ps(); TILE]; P];
            let to = t.acc.add(tile * TILE * PANEL);
            for panel in 0..P {
                for i in 0..TILE {
                    acc[panel][i] = _mm512_loadu_ps(to.add(panel * t.acc_stride + i * PANEL));
                }
            }
            for index in 0..t.count {
                for line in (0..if tile == 0 { t.fetched } else { 0 }).step_by(64) {
                    for panel in 0..P {
                        let ahead = t.ahead.wrapping_add(panel * t.ahead_stride + index * t.fetched + line);
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                    }
                }
                let done = tile * t.count + index;
                let lines = t.lines.add(tile * t.next + index * t.stride);
                for panel in 0..P {
                    if done + 1 < blocks {
                        write(panel, done + 1);
                    }
                    if done + 2 < blocks {
                        multiply(panel);
                    }
                    let sums = &raw const (*kept.add(done % 2))[panel];
                    let block = &*t.data.add(panel * t.data_stride).cast::<Block>().add(index);
                    let scale = _mm512_load_ps(block.scales[0].as_ptr());
                    let off = _mm512_mul_ps(scale, _mm512_set1_ps(-SHIFT));
                    for i in 0..TILE {
                        let line = &*lines.add(i);
                        let shifted = _mm512_castsi512_ps(_mm512_add_epi32((*sums)[i], start));
                        let all = _mm512_fmadd_ps(shifted, scale, off);
                        acc[panel][i] = _mm512_fmadd_ps(all, _mm512_set1_ps(line.d), acc[panel][i]);
                    }
                }
            }
            for panel in 0..P {
                for i in 0..TILE {
                    _mm512_storeu_ps(to.add(panel * t.acc_stride + i * PANEL), acc[panel][i]);
                }
            }
        }
    }
}
