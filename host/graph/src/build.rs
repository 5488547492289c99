//! Short names for the nodes that the host itself builds: autodiff, passes, training and update graphs.

use crate::op::{self, BinaryOp, ReduceOp, UnaryOp};
use crate::{DType, Float, Graph, NodeId, Result, Shape, Type};

impl Graph {
    /// A number of `dtype`.
    ///
    /// # Errors
    /// When a limit is reached; all of these fail only on limits and shapes.
    pub fn scalar(&mut self, value: f64, dtype: DType) -> Result<NodeId> {
        self.push(op::Full { ty: Type::scalar(dtype), value: Float(value) }, &[])
    }

    /// One number everywhere.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn full(&mut self, shape: Shape, value: f64, dtype: DType) -> Result<NodeId> {
        self.push(op::Full { ty: Type::new(dtype, shape), value: Float(value) }, &[])
    }

    /// `f(x)`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn unary(&mut self, f: UnaryOp, x: NodeId) -> Result<NodeId> {
        self.push(op::Unary(f), &[x])
    }

    /// `f(a, b)`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn binary(&mut self, f: BinaryOp, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.push(op::Binary(f), &[a, b])
    }

    /// `a + b`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn add(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.binary(BinaryOp::Add, a, b)
    }

    /// `a - b`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn sub(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.binary(BinaryOp::Sub, a, b)
    }

    /// `a · b`, elementwise.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.binary(BinaryOp::Mul, a, b)
    }

    /// `a / b`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn div(&mut self, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.binary(BinaryOp::Div, a, b)
    }

    /// `x · c`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn scale(&mut self, x: NodeId, c: f64) -> Result<NodeId> {
        let c = self.scalar(c, self.ty(x).dtype)?;
        self.mul(x, c)
    }

    /// Reduction over `axes`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn reduce(&mut self, f: ReduceOp, x: NodeId, axes: &[usize], keep: bool) -> Result<NodeId> {
        self.push(op::Reduce { op: f, axes: axes.to_vec(), keep }, &[x])
    }

    /// Sum over all axes.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn sum_all(&mut self, x: NodeId) -> Result<NodeId> {
        let axes: Vec<usize> = (0..self.ty(x).shape.rank()).collect();
        self.reduce(ReduceOp::Sum, x, &axes, false)
    }

    /// Other shape, same order; `x` itself when it has the shape already.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn reshape(&mut self, x: NodeId, to: Shape) -> Result<NodeId> {
        if self.ty(x).shape == to { Ok(x) } else { self.push(op::Reshape { to }, &[x]) }
    }

    /// Another element type; `x` itself when it has it already.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn cast(&mut self, x: NodeId, dtype: DType) -> Result<NodeId> {
        if self.ty(x).dtype == dtype { Ok(x) } else { self.push(op::Cast(dtype), &[x]) }
    }

    /// `cond ? a : b`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn select(&mut self, cond: NodeId, a: NodeId, b: NodeId) -> Result<NodeId> {
        self.push(op::Select, &[cond, a, b])
    }

    /// Broadcast copy; `x` itself when it has the shape already.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn expand(&mut self, x: NodeId, to: Shape) -> Result<NodeId> {
        if self.ty(x).shape == to { Ok(x) } else { self.push(op::Expand { to }, &[x]) }
    }

    /// Sums `x` down to `shape`, undoing a broadcast.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn sum_to(&mut self, x: NodeId, shape: &Shape) -> Result<NodeId> {
        let from = self.ty(x).shape.clone();
        if &from == shape {
            return Ok(x);
        }
        let lead = from.rank() - shape.rank();
        let one = crate::Dim::fixed(1);
        let axes: Vec<usize> = (0..from.rank()).filter(|&i| i < lead || (shape[i - lead] == one && from[i] != one)).collect();
        let summed = self.reduce(ReduceOp::Sum, x, &axes, true)?;
        self.reshape(summed, shape.clone())
    }

    /// `x·Wᵀ`.
    ///
    /// # Errors
    /// See [`Graph::scalar`].
    pub fn linear(&mut self, x: NodeId, w: NodeId) -> Result<NodeId> {
        self.push(op::Linear::plain(), &[x, w])
    }

    /// Output `index` of a node; 0 is the node itself.
    ///
    /// # Errors
    /// When there is no such output.
    pub fn part(&mut self, node: NodeId, index: u8) -> Result<NodeId> {
        if index == 0 { Ok(node) } else { self.push(op::Part { index }, &[node]) }
    }
}
