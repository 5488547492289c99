//! Tile registers and the matrix unit behind them (Intel Advanced Matrix Extensions).
//!
//! A tile is 16 rows of 64 bytes. The matrix unit multiplies a tile of the left operand, 16 rows of 32 `bf16` or 64 `i8` values along
//! `k`, by one of the right operand, whose rows each hold 2 or 4 consecutive values of `k` for 16 columns, and adds the product to a tile of
//! 16 by 16 sums in 32 bits.
//!
//! The instructions are written as assembly, since the compiler has no stable names for them; it never uses tile registers by itself,
//! so their contents last from one block of assembly to the next.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::LazyLock;

/// Rows of a tile, and columns of a tile of sums.
pub(crate) const ROWS: usize = 16;

/// Bytes of a row.
pub(crate) const ROW_BYTES: usize = 64;

/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = ROWS * ROW_BYTES;

/// Whether this CPU has tiles for `bf16` and `i8`, and the system lets this process use them.
pub(crate) fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| supported() && permitted());
    *AVAILABLE
}

/// The CPU's part: the three extensions, and tiles among the state that the system saves.
fn supported() -> bool {
    if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
        return false;
    }
    const EXTENSIONS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const STATE: u64 = 1 << 17 | 1 << 18;
    // Leaf 1, bit 27 of ECX: the system has turned XGETBV on.
    // SAFETY: which was asked first.
    let saved = || unsafe { _xgetbv(0) };
    __cpuid_count(7, 0).edx & EXTENSIONS == EXTENSIONS && __cpuid(1).ecx & 1 << 27 != 0 && saved() & STATE == STATE
}

/// Asks the system for tiles, whose 8 KiB a thread it saves only for processes that want them. Holds for all threads from then on.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const TILE_DATA: u64 = 18;
        let result: i64;
        // SAFETY: this call changes nothing but what the process may do; a system that does not know it says so.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Shapes of the eight tiles, as the instruction that sets them reads it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Rows and bytes of a row of each tile.
    pub(crate) const fn of(tiles: [(usize, usize); 8]) -> Shapes {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < tiles.len() {
            assert!(tiles[tile].0 - 1 < ROWS && tiles[tile].1 - 1 < ROW_BYTES && tiles[tile].1.is_multiple_of(4));
            (rows[tile], row_bytes[tile]) = (tiles[tile].0 as u8, tiles[tile].1 as u16);
            tile += 1;
        }
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// The tile registers of this thread, in some shapes, until dropped. They are not to be taken twice at a time.
pub(crate) struct Tiles(());

impl Tiles {
    /// All of full size.
    ///
    /// # Safety
    /// See [`Tiles::shaped`].
    pub(crate) unsafe fn take() -> Tiles {
        const FULL: Shapes = Shapes::of([(ROWS, ROW_BYTES); 8]);
        // SAFETY: by the caller's promise.
        unsafe { Tiles::shaped(const { &FULL }) }
    }

    /// # Safety
    /// The level is [`crate::isa::Isa::Amx`].
    pub(crate) unsafe fn shaped(shapes: &Shapes) -> Tiles {
        // SAFETY: shapes are valid, and by the caller's promise the instruction exists.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *shapes, options(nostack, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // So that the system need not save them. SAFETY: taken, so the instruction exists.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Tile `$t` becomes what is at `$from`, rows of its shape that begin [`ROW_BYTES`], or `$stride` bytes, apart.
macro_rules! load {
    ($t:literal, $from:expr) => {
        $crate::amx::load!($t, $from, $crate::amx::ROW_BYTES)
    };
    ($t:literal, $from:expr, $stride:expr) => {
        std::arch::asm!(
            concat!("tileloadd tmm", $t, ", [{0} + {1}]"),
            in(reg) $from, in(reg) $stride, options(nostack, readonly, preserves_flags)
        )
    };
}

/// Writes tile `$t` to `$to`, rows `$stride` bytes apart.
macro_rules! store {
    ($t:literal, $to:expr, $stride:expr) => {
        std::arch::asm!(
            concat!("tilestored [{0} + {1}], tmm", $t),
            in(reg) $to, in(reg) $stride, options(nostack, preserves_flags)
        )
    };
}

/// Tile `$t` becomes zero.
macro_rules! zero {
    ($t:literal) => {
        std::arch::asm!(concat!("tilezero tmm", $t), options(nostack, nomem, preserves_flags))
    };
}

/// Adds the product of tiles `$a` and `$b` to `$c`: `tdpbf16ps`, or `tdpbssd` and its kin.
macro_rules! multiply {
    ($how:literal, $c:literal, $a:literal, $b:literal) => {
        std::arch::asm!(concat!($how, " tmm", $c, ", tmm", $a, ", tmm", $b), options(nostack, nomem, preserves_flags))
    };
}

pub(crate) use {load, multiply, store, zero};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_of_bytes_and_one_of_halves() {
        if !available() {
            return eprintln!("skipped: no tiles here");
        }
        let bytes: Vec<i8> = (0..TILE_BYTES).map(|i| (i * 7 % 251) as u8 as i8).collect();
        // bf16 small whole numbers, whose products are exact.
        let halves: Vec<u16> = (0..TILE_BYTES / 2).map(|i| half::bf16::from_f32((i % 13) as f32 - 6.0).to_bits()).collect();
        let (mut whole, mut floats) = (vec![0i32; 256], vec![0f32; 256]);
        // SAFETY: tiles are there, and every operand has 1 KiB.
        unsafe {
            let _tiles = Tiles::take();
            zero!(0);
            load!(4, bytes.as_ptr());
            load!(5, bytes.as_ptr());
            multiply!("tdpbssd", 0, 4, 5);
            store!(0, whole.as_mut_ptr(), 64usize);
            zero!(1);
            load!(6, halves.as_ptr());
            load!(7, halves.as_ptr());
            multiply!("tdpbf16ps", 1, 6, 7);
            store!(1, floats.as_mut_ptr(), 64usize);
        }
        let half = |i: usize| half::bf16::from_bits(halves[i]).to_f32();
        for (i, j) in (0..256).map(|at| (at / 16, at % 16)) {
            let sum: i32 = (0..64).map(|k| i32::from(bytes[i * 64 + k]) * i32::from(bytes[k / 4 * 64 + 4 * j + k % 4])).sum();
            assert_eq!(whole[i * 16 + j], sum);
            let sum: f32 = (0..32).map(|k| half(i * 32 + k) * half(k / 2 * 32 + 2 * j + k % 2)).sum();
            assert_eq!(floats[i * 16 + j], sum);
        }
    }
}
