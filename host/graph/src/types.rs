//! Element types, shapes and value types.

use std::fmt;
use std::ops::Deref;

use crate::{Bindings, Dim, Result};

/// Logical element type. Devices choose storage and compute types; the CPU computes every float type in f32 and keeps
/// integers as i32 and booleans as 0.0 or 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// Truth value.
    Bool,
    /// Unsigned 8 bit.
    U8,
    /// Signed 8 bit.
    S8,
    /// Signed 16 bit.
    S16,
    /// Signed 32 bit.
    S32,
    /// Signed 64 bit.
    S64,
    /// Unsigned 32 bit.
    U32,
    /// 8-bit float, 4 exponent bits.
    F8E4M3,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl DType {
    /// Whether arithmetic and gradients make sense.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2 | DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// Whether values are whole numbers (booleans are not).
    pub fn is_int(self) -> bool {
        matches!(self, DType::U8 | DType::S8 | DType::S16 | DType::S32 | DType::S64 | DType::U32)
    }

    /// Lower-case name as in dumps.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::U8 => "u8",
            DType::S8 => "s8",
            DType::S16 => "s16",
            DType::S32 => "s32",
            DType::S64 => "s64",
            DType::U32 => "u32",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }
}

/// A list of dimensions, row-major: the last axis is contiguous. Rank 0 is a scalar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Shape(Vec<Dim>);

impl Shape {
    /// A scalar's shape.
    pub fn scalar() -> Shape {
        Shape(Vec::new())
    }

    /// A shape of known sizes.
    pub fn fixed(dims: &[u64]) -> Shape {
        Shape(dims.iter().map(|&d| Dim::fixed(d)).collect())
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Product of all dimensions.
    ///
    /// # Errors
    /// When the product overflows.
    pub fn elements(&self) -> Result<Dim> {
        self.product(0..self.rank())
    }

    /// Product of the dimensions of `axes`.
    ///
    /// # Errors
    /// When the product overflows.
    pub fn product(&self, axes: std::ops::Range<usize>) -> Result<Dim> {
        self.0[axes].iter().try_fold(Dim::fixed(1), |p, d| p.mul(d))
    }

    /// Sizes under a binding of the symbols.
    ///
    /// # Errors
    /// When a symbol is unbound or the arithmetic overflows.
    pub fn eval(&self, bindings: &Bindings) -> Result<Vec<usize>> {
        self.0.iter().map(|d| d.eval(bindings).map(|v| v as usize)).collect()
    }

    /// The last dimension.
    pub fn last(&self) -> Option<&Dim> {
        self.0.last()
    }

    /// The dimensions.
    pub fn dims(&self) -> &[Dim] {
        &self.0
    }

    /// Numpy's broadcasting rule: align at the right; equal, or one of them 1.
    ///
    /// # Errors
    /// `None` when two dimensions cannot be shown to agree.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.rank().max(other.rank());
        let one = Dim::fixed(1);
        let at = |s: &Shape, i: usize| if i + s.rank() >= rank { s.0[i + s.rank() - rank].clone() } else { one.clone() };
        (0..rank)
            .map(|i| match (at(self, i), at(other, i)) {
                (a, b) if a == b || b == one => Some(a),
                (a, b) if a == one => Some(b),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Shape)
    }
}

impl From<Vec<Dim>> for Shape {
    fn from(dims: Vec<Dim>) -> Shape {
        Shape(dims)
    }
}

impl FromIterator<Dim> for Shape {
    fn from_iter<I: IntoIterator<Item = Dim>>(dims: I) -> Shape {
        Shape(dims.into_iter().collect())
    }
}

impl Deref for Shape {
    type Target = [Dim];
    fn deref(&self) -> &[Dim] {
        &self.0
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Type {
        Type { dtype, shape: shape.into() }
    }

    /// f32 of this shape.
    pub fn f32(shape: impl Into<Shape>) -> Type {
        Type::new(DType::F32, shape)
    }

    /// A scalar of this element type.
    pub fn scalar(dtype: DType) -> Type {
        Type::new(dtype, Shape::scalar())
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype.name(), self.shape)
    }
}

/// A float attribute that compares and hashes by its bits, so that ops can be compared and hashed.
#[derive(Clone, Copy, Debug)]
pub struct Float(pub f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Float {}

impl std::hash::Hash for Float {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl From<f64> for Float {
    fn from(value: f64) -> Float {
        Float(value)
    }
}

impl From<f32> for Float {
    fn from(value: f32) -> Float {
        Float(f64::from(value))
    }
}
