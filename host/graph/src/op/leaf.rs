//! Nodes without inputs.

use std::sync::Arc;

use super::{OpRule, arity};
use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use crate::{DType, Dim, Error, Float, Graph, InputId, ParamId, Result, Shape, StateId, Type};

/// A named input of the run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Input {
    /// Which.
    pub id: InputId,
}

impl OpRule for Input {
    fn name(&self) -> &'static str {
        "input"
    }
    fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 0)?;
        let info = g.inputs().get(self.id.index()).ok_or_else(|| Error::attr(self.name(), "names another graph's input"))?;
        Ok(vec![info.ty.clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.bound_input(self.id)?])
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// A parameter's storage, whatever its format.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Param {
    /// Which.
    pub id: ParamId,
}

impl OpRule for Param {
    fn name(&self) -> &'static str {
        "param"
    }
    fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 0)?;
        let info = g.params().get(self.id.index()).ok_or_else(|| Error::attr(self.name(), "names another graph's parameter"))?;
        Ok(vec![Type::f32(Shape::fixed(&info.shape))])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.bound_param(self.id)?])
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// A persistent tensor's value before the run's effects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Which.
    pub id: StateId,
}

impl OpRule for State {
    fn name(&self) -> &'static str {
        "state"
    }
    fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 0)?;
        let info = g.states().get(self.id.index()).ok_or_else(|| Error::attr(self.name(), "names another graph's state"))?;
        Ok(vec![info.ty.clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![cx.bound_state(self.id)?])
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// Elements of a constant in row-major order.
#[derive(Clone, Debug)]
pub enum ConstantData {
    /// Float types.
    Float(Arc<[f32]>),
    /// Integer types, and booleans as 0 or 1.
    Int(Arc<[i32]>),
}

impl PartialEq for ConstantData {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (ConstantData::Float(a), ConstantData::Float(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(x, y)| x.to_bits() == y.to_bits())
            }
            (ConstantData::Int(a), ConstantData::Int(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for ConstantData {}

impl std::hash::Hash for ConstantData {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            ConstantData::Float(v) => v.iter().for_each(|x| x.to_bits().hash(state)),
            ConstantData::Int(v) => v.hash(state),
        }
    }
}

/// Data known at trace time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Constant {
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<u64>,
    /// Elements.
    pub data: ConstantData,
}

impl Constant {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        4 * match &self.data {
            ConstantData::Float(v) => v.len() as u64,
            ConstantData::Int(v) => v.len() as u64,
        }
    }
}

impl OpRule for Constant {
    fn name(&self) -> &'static str {
        "constant"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 0)?;
        let shape = Shape::fixed(&self.shape);
        let want = shape.elements()?.as_fixed();
        let float = matches!(self.data, ConstantData::Float(_));
        if float != self.dtype.is_float() {
            return Err(Error::attr(self.name(), format!("data do not fit element type {}", self.dtype.name())));
        }
        if want != Some(self.bytes() / 4) {
            return Err(Error::attr(self.name(), format!("shape {shape} does not hold {} elements", self.bytes() / 4)));
        }
        Ok(vec![Type::new(self.dtype, shape)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        cx.one(match &self.data {
            ConstantData::Float(v) => v.iter().map(|&x| f64::from(x)).collect(),
            ConstantData::Int(v) => v.iter().map(|&x| f64::from(x)).collect(),
        })
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// One number everywhere; rank 0 is a scalar.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Full {
    /// Type.
    pub ty: Type,
    /// Number.
    pub value: Float,
}

impl OpRule for Full {
    fn name(&self) -> &'static str {
        "full"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 0)?;
        Ok(vec![self.ty.clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::full(cx.shape(0)?, self.value.0)])
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}

/// Index along an axis, broadcast over the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Iota {
    /// Type.
    pub ty: Type,
    /// Axis counted along.
    pub axis: usize,
}

impl OpRule for Iota {
    fn name(&self) -> &'static str {
        "iota"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 0)?;
        if self.axis >= self.ty.shape.rank() {
            return Err(Error::attr(self.name(), format!("axis {} is not in {}", self.axis, self.ty)));
        }
        Ok(vec![self.ty.clone()])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::from_index(cx.shape(0)?, |index| index[self.axis] as f64)])
    }
    fn backward(&self, _: &mut Backward<'_>) -> Result<()> {
        Ok(())
    }

    fn flops(&self, _: &[Type], _: &[Type]) -> Result<Dim> {
        Ok(Dim::fixed(0))
    }
}
