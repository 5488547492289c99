//! Panels in registers of 512 bits.

mod exact;
mod unpack;

use std::arch::x86_64::*;

use super::{Block, Kind};
use crate::format::Format;
pub(super) use exact::{columns, dots, panels};
pub(crate) use unpack::{Packed, Source, Wide};

/// Calls a function for the source that reads a format's panels.
macro_rules! for_format {
    ($format:expr, $function:ident($($arg:expr),*)) => {
        for_format!($format, $function($($arg),*), Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Iq4Nl Q2K Q3K Q4K Q5K Q6K)
    };
    ($format:expr, $function:ident $args:tt, $($name:ident)*) => {
        match $format {
            $(Format::$name => for_format!(@ $function, $name, $args),)*
            Format::F32 | Format::F16 | Format::BF16 | Format::Nf4 => unreachable!("`Kind::of` has no panels of it"),
        }
    };
    (@ $function:ident, $name:ident, ($($arg:expr),*)) => { $function::<Packed<{ Format::$name as usize }>>($($arg),*) };
}

pub(crate) use for_format;

/// Widens whole units into blocks. Signed levels have `offset` added, 128 or nothing.
///
/// # Safety
/// AVX-512 F, BW and VNNI.
pub(super) unsafe fn widen(kind: Kind, units: &[u8], out: &mut [Block], offset: u8) {
    assert!(out.len() * kind.unit_bytes() >= units.len() * kind.blocks(), "blocks for all units");
    // SAFETY: the selected function has the same contract.
    unsafe { for_format!(kind.format, widen_units(units, out, offset ^ 128)) }
}

/// # Safety
/// See [`widen`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn widen_units<S: Source>(units: &[u8], out: &mut [Block], flipped: u8) {
    let flipped = _mm512_set1_epi8(flipped as i8);
    let flip = |levels| if S::SIGNED { _mm512_xor_si512(levels, flipped) } else { levels };
    for (unit, out) in units.chunks_exact(S::BYTES).zip(out.chunks_exact_mut(S::BLOCKS)) {
        // SAFETY: a whole unit; blocks are aligned.
        unsafe {
            let source = S::unit(unit.as_ptr());
            for (block, out) in out.iter_mut().enumerate() {
                let levels = out.levels.as_mut_ptr().cast::<__m512i>();
                levels.write(flip(source.step::<0>(block)));
                levels.add(1).write(flip(source.step::<1>(block)));
                levels.add(2).write(flip(source.step::<2>(block)));
                levels.add(3).write(flip(source.step::<3>(block)));
                levels.add(4).write(flip(source.step::<4>(block)));
                levels.add(5).write(flip(source.step::<5>(block)));
                levels.add(6).write(flip(source.step::<6>(block)));
                levels.add(7).write(flip(source.step::<7>(block)));
                for group in 0..S::GROUPS {
                    _mm512_store_ps(out.scales[group].as_mut_ptr(), source.scale(block, group));
                    if !S::SIGNED {
                        _mm512_store_ps(out.minima[group].as_mut_ptr(), source.minimum(block, group));
                    }
                }
            }
        }
    }
}
