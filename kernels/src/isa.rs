//! Instruction-set levels: what the CPU offers and what a pool is told to use.

use std::fmt;
use std::str::FromStr;

/// Instruction-set level, ordered from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust; the specification of every kernel.
    Scalar,
    /// NEON, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2 with FMA and F16C, and the instructions for bits that came with it (BMI, LZCNT, POPCNT).
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI (and everything of [`Isa::Avx2`]).
    Avx512,
    /// Tile registers for `bf16` and `i8` (AMX), on Linux (and everything of [`Isa::Avx512`]).
    Amx,
}

impl Isa {
    /// All levels, lowest first.
    #[cfg(not(target_arch = "aarch64"))]
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];
    /// All levels, lowest first. No processor has both of these families, so one order does for both.
    #[cfg(target_arch = "aarch64")]
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The best level that this CPU supports.
    pub fn detect() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
                && is_x86_feature_detected!("popcnt");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 && crate::amx::available() {
                return Isa::Amx;
            }
            if avx2 && avx512 {
                return Isa::Avx512;
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        return Isa::Neon;
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Scalar
    }

    /// Whether kernels have vectors at this level.
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    pub(crate) fn is_wide(self) -> bool {
        self > Isa::Scalar
    }

    /// Every level that this CPU can run, lowest first (what parity tests loop over).
    pub fn available() -> impl Iterator<Item = Isa> {
        let best = Isa::detect();
        Isa::ALL.into_iter().filter(move |&isa| isa <= best)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        })
    }
}

/// The text names no instruction-set level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(pub String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Isa::ALL.map(|isa| format!("`{isa}`")).join(", ");
        write!(f, "unknown instruction set `{}`; the instruction sets are {known}", self.0)
    }
}

impl std::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(text: &str) -> Result<Isa, UnknownIsa> {
        match text {
            "scalar" => Ok(Isa::Scalar),
            #[cfg(target_arch = "aarch64")]
            "neon" => Ok(Isa::Neon),
            "avx2" => Ok(Isa::Avx2),
            "avx512" => Ok(Isa::Avx512),
            "amx" => Ok(Isa::Amx),
            other => Err(UnknownIsa(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>(), Ok(isa));
        }
        assert!("sse".parse::<Isa>().is_err());
        assert!(Isa::available().any(|isa| isa == Isa::Scalar));
    }
}
