//! Dense f64 tensors, row-major, with the few walks that reference evaluations need. Clarity over speed.

/// Sizes and elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Panics
    /// When the shape holds another number of elements.
    #[track_caller]
    pub fn new(shape: Vec<usize>, data: Vec<f64>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "elements of {shape:?}");
        Tensor { shape, data }
    }

    /// A scalar.
    pub fn scalar(value: f64) -> Tensor {
        Tensor { shape: Vec::new(), data: vec![value] }
    }

    /// Zero everywhere.
    pub fn zeros(shape: Vec<usize>) -> Tensor {
        Tensor::full(shape, 0.0)
    }

    /// One number everywhere.
    pub fn full(shape: Vec<usize>, value: f64) -> Tensor {
        let len = shape.iter().product();
        Tensor { shape, data: vec![value; len] }
    }

    /// The element at each index as `value` says.
    pub fn from_index(shape: Vec<usize>, mut value: impl FnMut(&[usize]) -> f64) -> Tensor {
        let len: usize = shape.iter().product();
        let mut index = vec![0; shape.len()];
        let mut data = Vec::with_capacity(len);
        for _ in 0..len {
            data.push(value(&index));
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Tensor { shape, data }
    }

    /// Elements from one axis step to the next.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        for axis in (1..self.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * self.shape[axis];
        }
        strides
    }

    /// The last size, or 1.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows over the last axis; none when it is empty.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.data.chunks_exact(self.cols().max(1))
    }

    /// `f` of every element.
    #[must_use]
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Tensor {
        Tensor { shape: self.shape.clone(), data: self.data.iter().map(|&v| f(v)).collect() }
    }

    /// `f` of every pair of elements of two tensors of one shape.
    #[must_use]
    pub fn zip(&self, other: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
        let data = self.data.iter().zip(&other.data).map(|(&a, &b)| f(a, b)).collect();
        Tensor { shape: self.shape.clone(), data }
    }

    /// Broadcast copy by numpy's rule; `to` must be a broadcast of the shape.
    #[must_use]
    pub fn expand(&self, to: &[usize]) -> Tensor {
        let lead = to.len() - self.shape.len();
        let strides = self.strides();
        Tensor::from_index(to.to_vec(), |index| {
            let at = (0..strides.len()).filter(|&a| self.shape[a] != 1).map(|a| index[lead + a] * strides[a]).sum::<usize>();
            self.data[at]
        })
    }
}

/// `a·b` for `a [m, k]` (stored `[k, m]` when transposed) and `b [k, n]` (stored `[n, k]`).
pub(crate) fn product([m, k, n]: [usize; 3], (a, transpose_a): (&[f64], bool), (b, transpose_b): (&[f64], bool)) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let term = |p: usize| {
                let left = if transpose_a { a[p * m + i] } else { a[i * k + p] };
                left * if transpose_b { b[j * k + p] } else { b[p * n + j] }
            };
            out[i * n + j] = (0..k).map(term).sum();
        }
    }
    out
}
