//! Sizes of axes: numbers, symbols, and sums and products of them.

use std::ops::{Add, Div, Mul, Sub};

use crate::bindings::swift::tensor::graph::DimOp;
pub use crate::bindings::swift::tensor::types::Dim;
use crate::trace;

impl Dim {
    /// The size, if it is known while tracing.
    pub fn fixed(self) -> Option<u64> {
        match self {
            Dim::Fixed(size) => Some(size),
            Dim::Sym(_) => None,
        }
    }

    fn apply(self, op: DimOp, other: Dim) -> Dim {
        trace::record(|g| g.dim_expr(op, self, other)).unwrap_or(Dim::Fixed(0))
    }
}

impl From<u64> for Dim {
    fn from(size: u64) -> Dim {
        Dim::Fixed(size)
    }
}

macro_rules! dim_operator {
    ($($trait:ident $method:ident $op:ident),*) => {
        $(impl<R: Into<Dim>> $trait<R> for Dim {
            type Output = Dim;
            fn $method(self, other: R) -> Dim {
                self.apply(DimOp::$op, other.into())
            }
        })*
    };
}

// Division rounds down, as between whole numbers.
dim_operator!(Add add Add, Sub sub Sub, Mul mul Mul, Div div FloorDiv);

/// What a shape can be given as: an array, a slice, or a tuple that mixes numbers and [`Dim`]s.
pub trait IntoShape {
    /// The shape.
    fn into_shape(self) -> Vec<Dim>;
}

impl<D: Into<Dim>, const N: usize> IntoShape for [D; N] {
    fn into_shape(self) -> Vec<Dim> {
        self.map(Into::into).to_vec()
    }
}

impl IntoShape for &[Dim] {
    fn into_shape(self) -> Vec<Dim> {
        self.to_vec()
    }
}

macro_rules! tuple_shape {
    ($($name:ident)*) => {
        impl<$($name: Into<Dim>),*> IntoShape for ($($name,)*) {
            #[expect(non_snake_case, reason = "one name serves as type and variable")]
            fn into_shape(self) -> Vec<Dim> {
                let ($($name,)*) = self;
                vec![$($name.into()),*]
            }
        }
    };
}

tuple_shape!(A B);
tuple_shape!(A B C);
tuple_shape!(A B C D);
