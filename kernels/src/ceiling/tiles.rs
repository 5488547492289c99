//! The matrix unit's ceilings: four tiles of sums, enough to fill it.

use std::hint::black_box;

use super::vector::STEPS;
use crate::amx::{ROWS, TILE_BYTES, Tiles, load, multiply, store, zero};

/// Operands that are neither zero nor alike in neighbouring places: the unit's clock depends on how many bits change.
#[repr(align(64))]
struct Operand([u8; TILE_BYTES]);

impl Operand {
    /// Bytes of `bf16` numbers near one, or any integers.
    fn new() -> Operand {
        Operand(std::array::from_fn(|i| if i % 2 == 1 { 0x3f } else { ((i * 181) >> 3) as u8 }))
    }
}

macro_rules! work {
    ($name:ident, $how:literal, $values:literal) => {
        /// # Safety
        /// The level is [`crate::isa::Isa::Amx`].
        pub(super) unsafe fn $name() -> f64 {
            let (operand, mut sums) = (black_box(Operand::new()), Operand([0; TILE_BYTES]));
            let from = operand.0.as_ptr();
            // SAFETY: the level by the caller's promise; every operand has 1 KiB.
            unsafe {
                let _tiles = Tiles::take();
                zero!(0);
                zero!(1);
                zero!(2);
                zero!(3);
                load!(4, from);
                load!(5, from);
                load!(6, from);
                load!(7, from);
                for _ in 0..STEPS / 4 {
                    multiply!($how, 0, 4, 6);
                    multiply!($how, 1, 4, 7);
                    multiply!($how, 2, 5, 6);
                    multiply!($how, 3, 5, 7);
                }
                store!(0, sums.0.as_mut_ptr(), 64usize);
            }
            black_box(&sums.0);
            (2 * STEPS * ROWS * ROWS * $values) as f64
        }
    };
}

work!(half_work, "tdpbf16ps", 32);
work!(int8_work, "tdpbssd", 64);
