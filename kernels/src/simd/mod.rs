//! One vector type for all instruction sets, for the kernels that are the same but for width.
//!
//! A [`Simd`] token is proof that its instructions may be executed: it is made only inside the
//! functions that [`simd_fn!`] compiles with these instructions enabled. Kernels are written once,
//! generic over the token, and are inlined into such a function for each level. There is no
//! one-lane implementation: at the scalar level a family runs its `scalar.rs`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

use crate::dynamic8::{Buckets, Map};

/// Vectors of `LANES` floats and masks over them.
///
/// Lanes are independent and follow IEEE 754; `min` and `max` return the second operand if either
/// is NaN; comparisons are false on NaN.
pub(crate) trait Simd: Copy {
    /// Floats of a vector.
    const LANES: usize;
    /// A vector.
    type F: Copy;
    /// A mask.
    type M: Copy;

    fn splat(self, x: f32) -> Self::F;
    /// # Safety
    /// `p` is readable for `LANES` floats.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Loads the first `n <= LANES` lanes, zeros above.
    ///
    /// # Safety
    /// `p` is readable for `n` floats.
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::F;
    /// Loads half floats.
    ///
    /// # Safety
    /// `p` is readable for `LANES` halves.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "attention, which reads them, has no vectors elsewhere"))]
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Loads signed bytes as floats.
    ///
    /// # Safety
    /// `p` is readable for `LANES` bytes.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "attention, which reads them, has no vectors elsewhere"))]
    unsafe fn load_i8(self, p: *const i8) -> Self::F;
    /// `table[codes[i]]`.
    ///
    /// # Safety
    /// `codes` is readable for `LANES` bytes and `table` for as many floats as the largest of them asks for.
    #[inline(always)]
    unsafe fn look_up(self, table: *const f32, codes: *const u8) -> Self::F {
        let mut lanes = [0.0; 16];
        // SAFETY: promised by the caller; there are at most 16 lanes.
        unsafe {
            lanes[..Self::LANES].iter_mut().enumerate().for_each(|(i, x)| *x = *table.add(usize::from(*codes.add(i))));
            self.load(lanes.as_ptr())
        }
    }
    /// Stores for each lane the number of the nearest entry of the signed map, [`crate::dynamic8::Map::nearest`].
    ///
    /// # Safety
    /// `out` is writable for `LANES` bytes, `buckets` are the map's, and no magnitude is above one but for a rounding; NaN may be there.
    #[inline(always)]
    unsafe fn put_signed_codes(self, x: Self::F, buckets: &Buckets, out: *mut u8) {
        let _ = buckets;
        // SAFETY: promised by the caller.
        unsafe { put_codes(self, Map::Signed, x, out) };
    }
    /// As [`Simd::put_signed_codes`], of the unsigned map.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn put_unsigned_codes(self, x: Self::F, buckets: &Buckets, out: *mut u8) {
        let _ = buckets;
        // SAFETY: promised by the caller.
        unsafe { put_codes(self, Map::Unsigned, x, out) };
    }
    /// # Safety
    /// `p` is writable for `LANES` floats.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Stores the first `n <= LANES` lanes.
    ///
    /// # Safety
    /// `p` is writable for `n` floats.
    unsafe fn store_part(self, p: *mut f32, n: usize, v: Self::F);

    /// Stores past the caches where the level can; [`fence`] orders what was stored before other threads may read it.
    ///
    /// # Safety
    /// `p` is writable for `LANES` floats and aligned to as many bytes.
    unsafe fn store_stream(self, p: *mut f32, v: Self::F);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `1 / a` for `a` of one and above or NaN, within two units in the last place; zero for infinity.
    fn recip(self, a: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of two numbers that are not negative; NaN is larger than all.
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        self.select(self.is_nan(a), a, self.max(a, b))
    }
    /// The largest lane in the order of [`Simd::larger`].
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: there are at most 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr(), a) };
        f32::from_bits(lanes.iter().fold(0, |top, lane| top.max(lane.to_bits())))
    }
    fn sqrt(self, a: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    fn floor(self, a: Self::F) -> Self::F;

    fn and(self, a: Self::F, b: Self::F) -> Self::F;
    fn or(self, a: Self::F, b: Self::F) -> Self::F;
    fn xor(self, a: Self::F, b: Self::F) -> Self::F;

    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    fn is_nan(self, a: Self::F) -> Self::M;
    fn both(self, a: Self::M, b: Self::M) -> Self::M;
    fn either(self, a: Self::M, b: Self::M) -> Self::M;
    /// Bit `i` is lane `i` of the mask.
    fn bits(self, a: Self::M) -> u32;
    /// `a` where the mask is set, else `b`.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;

    /// `x - floor(x)`, zero for infinities.
    fn fraction(self, x: Self::F) -> Self::F;
    /// `x 2^floor(n)` for `x` in `[1, 2)` and any `n`, rounded once; NaN if `x` is.
    fn scale_floor(self, x: Self::F, n: Self::F) -> Self::F;
    /// `x 2^n` for integral `n` in `-252..=254`, rounded once.
    fn scale(self, x: Self::F, n: Self::F) -> Self::F;
    /// Mantissa in `[1, 2)` and exponent of positive finite numbers, subnormal ones included.
    fn split(self, x: Self::F) -> (Self::F, Self::F);

    /// Every two neighbours exchanged.
    fn swap_pairs(self, a: Self::F) -> Self::F;

    /// Sum of the lanes in a fixed order.
    fn sum(self, a: Self::F) -> f32;

    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        self.xor(a, self.splat(-0.0))
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.and(a, self.splat(f32::from_bits(0x7fff_ffff)))
    }
    /// Magnitude of `a`, a number that is not negative, with the sign of `sign`.
    #[inline(always)]
    fn with_sign(self, a: Self::F, sign: Self::F) -> Self::F {
        self.or(a, self.and(sign, self.splat(-0.0)))
    }
    /// Largest lane; NaN lanes may be lost.
    #[inline(always)]
    fn top(self, a: Self::F) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        // SAFETY: there are at most 16 lanes.
        unsafe { self.store(lanes.as_mut_ptr(), a) };
        // Halves against each other: four steps in a row instead of sixteen.
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = lanes[i].max(lanes[i + half]);
            }
        }
        lanes[0]
    }
    /// Loads `n` lanes: a whole vector if there are enough.
    ///
    /// # Safety
    /// `p` is readable for `min(n, LANES)` floats.
    #[inline(always)]
    unsafe fn load_up_to(self, p: *const f32, n: usize) -> Self::F {
        // SAFETY: promised by the caller.
        unsafe { if n >= Self::LANES { self.load(p) } else { self.load_part(p, n) } }
    }
    /// Stores `n` lanes: a whole vector if there are enough.
    ///
    /// # Safety
    /// `p` is writable for `min(n, LANES)` floats.
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut f32, n: usize, v: Self::F) {
        // SAFETY: promised by the caller.
        unsafe { if n >= Self::LANES { self.store(p, v) } else { self.store_part(p, n, v) } }
    }
}

/// Codes lane by lane, where there are no table look-ups.
///
/// # Safety
/// `out` is writable for `LANES` bytes.
#[inline(always)]
unsafe fn put_codes<S: Simd>(s: S, map: Map, x: S::F, out: *mut u8) {
    let mut lanes = [0.0; 16];
    // SAFETY: promised by the caller; there are at most 16 lanes.
    unsafe {
        s.store(lanes.as_mut_ptr(), x);
        lanes[..S::LANES].iter().enumerate().for_each(|(i, &x)| *out.add(i) = map.nearest(x));
    }
}

/// Defines a kernel over a [`Simd`] token: a function that takes the level first, and runs the body
/// compiled for that level.
///
/// The level must come from a [`crate::pool::Pool`], which has checked that the CPU supports it.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$S:ident>($s:ident $(, $arg:ident: $ty:ty)* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "kernels take sizes and operands flat")]
        $vis fn $name(isa: $crate::isa::Isa $(, $arg: $ty)*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "kernels take sizes and operands flat")]
            fn body<$S: $crate::simd::Simd>($s: $S $(, $arg: $ty)*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments, reason = "kernels take sizes and operands flat")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body($crate::simd::Avx512::new() $(, $arg)*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
            #[allow(clippy::too_many_arguments, reason = "kernels take sizes and operands flat")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($crate::simd::Avx2::new() $(, $arg)*)
            }
            #[cfg(target_arch = "aarch64")]
            {
                let _ = isa;
                body($crate::simd::Neon::new() $(, $arg)*)
            }
            // SAFETY: the level comes from a pool, which has checked it against the CPU.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                if isa >= $crate::isa::Isa::Avx512 { avx512($($arg),*) } else { avx2($($arg),*) }
            }
        }
    };
}
pub(crate) use simd_fn;

/// Hints that the cache line of `p` will be read; never faults.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    // SAFETY: a prefetch accesses nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast())
    };
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags))
    };
}

/// As [`prefetch`], to the second cache, for what is far ahead: the first has few places for lines on their way, and stores past the
/// caches take the same ones.
#[inline(always)]
pub(crate) fn prefetch_far(p: *const f32) {
    // SAFETY: a prefetch accesses nothing.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast())
    };
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags))
    };
}

/// Orders [`Simd::store_stream`] before what follows.
#[inline(always)]
pub(crate) fn fence() {
    // SAFETY: every x86-64 has it. Elsewhere those are stores like any other.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Vectors of one round of a loop over elements: enough to hide what the loop itself costs.
pub(crate) const WAYS: usize = 4;

/// Most floats of a round.
pub(crate) const MOST: usize = WAYS * 16;

/// Floats by which operands are fetched ahead of results that go past the caches: 2 KB. Arithmetic fills the processor's window,
/// and its own look-ahead ends with each page.
pub(crate) const AHEAD: usize = 512;

/// Stores `v`, past the caches if so wished.
///
/// # Safety
/// `p` is writable for `LANES` floats, and aligned to as many bytes if `past`.
#[inline(always)]
pub(crate) unsafe fn put<S: Simd>(s: S, past: bool, p: *mut f32, v: S::F) {
    // SAFETY: promised by the caller.
    unsafe { if past { s.store_stream(p, v) } else { s.store(p, v) } }
}

/// `out[i] = f(x[i])`; see [`map_to`].
///
/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap.
#[inline(always)]
pub(crate) unsafe fn map<S: Simd>(s: S, x: *const f32, out: *mut f32, len: usize, f: impl Fn(S::F) -> S::F) {
    // SAFETY: promised by the caller.
    unsafe { map_to(s, false, x, out, len, f) };
}

/// `out[i] = f(a[i], b[i])`; see [`map_to`].
///
/// # Safety
/// As [`map`], for both operands.
#[inline(always)]
pub(crate) unsafe fn map2<S: Simd>(
    s: S,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    len: usize,
    f: impl Fn(S::F, S::F) -> S::F,
) {
    // SAFETY: promised by the caller.
    unsafe { map2_to(s, false, a, b, out, len, f) };
}

/// [`put`] of the first `n` lanes, or of a whole vector if there are enough.
///
/// # Safety
/// As [`put`], for `min(n, LANES)` floats.
#[inline(always)]
pub(crate) unsafe fn put_up_to<S: Simd>(s: S, past: bool, p: *mut f32, n: usize, v: S::F) {
    // SAFETY: promised by the caller.
    unsafe { if n >= S::LANES { put(s, past, p, v) } else { s.store_part(p, n, v) } }
}

/// `out[i] = f(x[i])`, past the caches if `past`.
///
/// There is one call of `f`, so that it is inlined whatever its size: left on its own it would be
/// compiled without the instructions of its token. The ragged end therefore passes through the same
/// loop, in a buffer.
///
/// # Safety
/// `x` is readable and `out` writable for `len` floats; they are equal or do not overlap. If `past`, `out` is aligned to a vector.
#[inline(always)]
pub(crate) unsafe fn map_to<S: Simd>(s: S, past: bool, x: *const f32, out: *mut f32, len: usize, f: impl Fn(S::F) -> S::F) {
    let step = WAYS * S::LANES;
    let whole = len - len % step;
    let mut rest = Round([0.0; MOST]);
    let end = rest.0.as_mut_ptr();
    // SAFETY: every access is below `len`, or below a round in the buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(x.add(whole), end, len - whole);
        for (x, out, len) in [(x, out, whole), (end.cast_const(), end, len - whole)] {
            for i in (0..len).step_by(step) {
                for way in 0..WAYS {
                    let i = i + way * S::LANES;
                    if past {
                        prefetch(x.wrapping_add(i + AHEAD));
                    }
                    put(s, past, out.add(i), f(s.load(x.add(i))));
                }
            }
        }
        std::ptr::copy_nonoverlapping(end.cast_const(), out.add(whole), len - whole);
    }
}

/// The floats of a round, aligned to a vector of any level.
#[repr(align(64))]
pub(crate) struct Round(pub(crate) [f32; MOST]);

/// `out[i] = f(a[i], b[i])`, past the caches if `past`.
///
/// # Safety
/// As [`map_to`], for both operands.
#[inline(always)]
pub(crate) unsafe fn map2_to<S: Simd>(
    s: S,
    past: bool,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    len: usize,
    f: impl Fn(S::F, S::F) -> S::F,
) {
    let step = WAYS * S::LANES;
    let whole = len - len % step;
    let (mut left, mut right) = (Round([0.0; MOST]), Round([0.0; MOST]));
    let ends = [left.0.as_mut_ptr(), right.0.as_mut_ptr()];
    // SAFETY: as `map_to`.
    unsafe {
        std::ptr::copy_nonoverlapping(a.add(whole), ends[0], len - whole);
        std::ptr::copy_nonoverlapping(b.add(whole), ends[1], len - whole);
        let rest = (ends[0].cast_const(), ends[1].cast_const(), ends[0], len - whole);
        for (a, b, out, len) in [(a, b, out, whole), rest] {
            for i in (0..len).step_by(step) {
                for way in 0..WAYS {
                    let i = i + way * S::LANES;
                    if past {
                        prefetch(a.wrapping_add(i + AHEAD));
                        prefetch(b.wrapping_add(i + AHEAD));
                    }
                    put(s, past, out.add(i), f(s.load(a.add(i)), s.load(b.add(i))));
                }
            }
        }
        std::ptr::copy_nonoverlapping(ends[0].cast_const(), out.add(whole), len - whole);
    }
}
