//! Tensors that cross the border of a device: inputs and outputs of runs.

use std::fmt;

use crate::{Error, Result};

/// A dense tensor in host memory, row-major. Booleans are f32 zeros and ones.
#[derive(Clone, Debug, PartialEq)]
pub enum HostTensor {
    /// Floats and booleans.
    F32 {
        /// Sizes.
        shape: Vec<usize>,
        /// Elements.
        data: Vec<f32>,
    },
    /// Whole numbers.
    I32 {
        /// Sizes.
        shape: Vec<usize>,
        /// Elements.
        data: Vec<i32>,
    },
}

impl HostTensor {
    /// Floats of this shape.
    ///
    /// # Panics
    /// When the shape does not hold the elements.
    #[track_caller]
    pub fn f32(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> HostTensor {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} does not hold the elements");
        HostTensor::F32 { shape, data }
    }

    /// Whole numbers of this shape.
    ///
    /// # Panics
    /// When the shape does not hold the elements.
    #[track_caller]
    pub fn i32(shape: impl Into<Vec<usize>>, data: Vec<i32>) -> HostTensor {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} does not hold the elements");
        HostTensor::I32 { shape, data }
    }

    /// A float.
    pub fn scalar(value: f32) -> HostTensor {
        HostTensor::F32 { shape: Vec::new(), data: vec![value] }
    }

    /// Sizes.
    pub fn shape(&self) -> &[usize] {
        match self {
            HostTensor::F32 { shape, .. } | HostTensor::I32 { shape, .. } => shape,
        }
    }

    /// The floats.
    ///
    /// # Errors
    /// When these are whole numbers.
    pub fn floats(&self) -> Result<&[f32]> {
        match self {
            HostTensor::F32 { data, .. } => Ok(data),
            HostTensor::I32 { .. } => Err(Error::tensor("tensor", &self.to_string(), "holds whole numbers, not floats")),
        }
    }

    /// The whole numbers.
    ///
    /// # Errors
    /// When these are floats.
    pub fn ints(&self) -> Result<&[i32]> {
        match self {
            HostTensor::I32 { data, .. } => Ok(data),
            HostTensor::F32 { .. } => Err(Error::tensor("tensor", &self.to_string(), "holds floats, not whole numbers")),
        }
    }

    /// The number, of a float tensor of one element.
    ///
    /// # Errors
    /// When there is not exactly one float.
    pub fn to_scalar(&self) -> Result<f32> {
        match self.floats()? {
            [value] => Ok(*value),
            _ => Err(Error::tensor("tensor", &self.to_string(), "is not a single number")),
        }
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        match self {
            HostTensor::F32 { data, .. } => data.as_ptr().cast(),
            HostTensor::I32 { data, .. } => data.as_ptr().cast(),
        }
    }
}

/// Element type and shape, as messages name it: `f32[3, 4]`.
impl fmt::Display for HostTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = if matches!(self, HostTensor::F32 { .. }) { "f32" } else { "s32" };
        write!(f, "{dtype}{:?}", self.shape())
    }
}
