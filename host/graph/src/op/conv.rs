//! Convolutions over one or two spatial axes: `x [batch, channels, (height,) width]`, `w [out, in / groups, (height,) width]`, as in
//! PyTorch. What is padded is zero, and may be more on one side than on the other: causal convolutions pad before only.

use super::{OpRule, arity, count, floats};
use crate::autodiff::Backward;
use crate::dim::DimOp;
use crate::interp::{Eval, Tensor};
use crate::op::ReduceOp;
use crate::{Dim, Error, Graph, Result, Shape, Type};

/// How filters meet images; one number for each spatial axis, one or two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvSpec {
    /// Distance between the places of a filter.
    pub stride: Vec<u64>,
    /// Zeros before the image.
    pub pad_lo: Vec<u64>,
    /// Zeros after it.
    pub pad_hi: Vec<u64>,
    /// Distance in the image between weights of a filter.
    pub dilation: Vec<u64>,
    /// Parts of the channels that see only each other; divides both numbers of channels.
    pub groups: u64,
}

impl ConvSpec {
    /// Shape of the result of images `x` and filters `w`.
    fn output(&self, op: &'static str, x: &Shape, w: &Shape, inputs: &[Type]) -> Result<Shape> {
        let refuse = |rule: String| Err(Error::shape(op, rule, inputs));
        let axes = self.stride.len();
        let given = [&self.pad_lo, &self.pad_hi, &self.dilation].iter().all(|v| v.len() == axes);
        if !(1..=2).contains(&axes) || !given {
            return Err(Error::attr(op, "stride, padding and dilation have a number for each of one or two spatial axes"));
        }
        if self.groups == 0 || self.stride.contains(&0) || self.dilation.contains(&0) {
            return Err(Error::attr(op, "stride, dilation and groups must be positive"));
        }
        if x.rank() != axes + 2 || w.rank() != axes + 2 {
            return refuse(format!("takes x [batch, channels, ...] and w [out, in, ...] with {axes} spatial axes"));
        }
        if w[1].mul(&Dim::fixed(self.groups))? != x[1] {
            return refuse(format!("each of {} groups of x's channels must have the {} that w takes", self.groups, w[1]));
        }
        let Some(filters) = w[0].as_fixed().filter(|filters| filters.is_multiple_of(self.groups)) else {
            return refuse(format!("{} groups do not divide the {} filters", self.groups, w[0]));
        };
        let mut shape = vec![x[0].clone(), Dim::fixed(filters)];
        for axis in 0..axes {
            let Some(taps) = w[axis + 2].as_fixed().filter(|&taps| taps > 0) else {
                return refuse(format!("a filter is {} wide, but must have a known size", w[axis + 2]));
            };
            let reach = Dim::fixed(taps - 1).mul(&Dim::fixed(self.dilation[axis]))?.add(&Dim::fixed(1))?;
            let padded = x[axis + 2].add(&Dim::fixed(self.pad_lo[axis]))?.add(&Dim::fixed(self.pad_hi[axis]))?;
            let Ok(free) = padded.sub(&reach) else {
                return refuse(format!("a filter reaches over {reach} values, the padded image has {padded}"));
            };
            let places = match self.stride[axis] {
                1 => free,
                stride => Dim::apply(DimOp::FloorDiv, &free, &Dim::fixed(stride))?,
            };
            shape.push(places.add(&Dim::fixed(1))?);
        }
        Ok(shape.into())
    }

    /// Calls `body` with the places in `x`, `w` and `y` of every product that there is.
    fn products(&self, x: &[usize], w: &[usize], y: &[usize], mut body: impl FnMut(usize, usize, usize)) {
        // One spatial axis is two, of which the first has one place.
        let two = |shape: &[usize]| if shape.len() == 4 { [shape[2], shape[3]] } else { [1, shape[2]] };
        let attribute = |v: &[u64], one: usize| if v.len() == 2 { [v[0] as usize, v[1] as usize] } else { [one, v[0] as usize] };
        let (image, filter, places) = (two(x), two(w), two(y));
        let (stride, lo, dilation) = (attribute(&self.stride, 1), attribute(&self.pad_lo, 0), attribute(&self.dilation, 1));
        let (inputs, outputs) = (w[1], w[0] / self.groups as usize);
        let meet = |axis: usize, place: usize, tap: usize| {
            let at = (place * stride[axis] + tap * dilation[axis]).checked_sub(lo[axis])?;
            (at < image[axis]).then_some(at)
        };
        for at_y in 0..y.iter().product() {
            let (row, column) = (at_y / places[1] % places[0], at_y % places[1]);
            let filter_number = at_y / (places[0] * places[1]) % y[1];
            let batch = at_y / (places[0] * places[1]) / y[1];
            for channel in 0..inputs {
                for (r, s) in (0..filter[0]).flat_map(|r| (0..filter[1]).map(move |s| (r, s))) {
                    let (Some(i), Some(j)) = (meet(0, row, r), meet(1, column, s)) else { continue };
                    let plane = batch * x[1] + filter_number / outputs * inputs + channel;
                    let at_x = (plane * image[0] + i) * image[1] + j;
                    let at_w = ((filter_number * inputs + channel) * filter[0] + r) * filter[1] + s;
                    body(at_x, at_w, at_y);
                }
            }
        }
    }
}

/// Inputs `x`, `w`, and `bias [out]` if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// How filters meet images.
    pub spec: ConvSpec,
    /// Whether there is a bias.
    pub bias: bool,
}

impl OpRule for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2 + usize::from(self.bias))?;
        floats(self.name(), inputs)?;
        let out = self.spec.output(self.name(), &inputs[0].shape, &inputs[1].shape, inputs)?;
        if self.bias && inputs[2].shape.dims() != &out[1..2] {
            return Err(Error::shape(self.name(), format!("the bias must be [{}]", out[1]), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, out)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (x, w, shape) = (cx.input(0), cx.input(1), cx.shape(0)?);
        let places = shape[2..].iter().product::<usize>().max(1);
        let channels = shape[1].max(1);
        let bias = |at: usize| if self.bias { cx.input(2).data[at / places % channels] } else { 0.0 };
        let mut y: Vec<f64> = (0..shape.iter().product()).map(bias).collect();
        self.spec.products(&x.shape, &w.shape, &shape, |i, j, o| y[o] += x.data[i] * w.data[j]);
        cx.one(y)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, x, w) = (cx.d_out()?, cx.input(0), cx.input(1));
        if cx.needs(0) {
            let x = cx.g.ty(x).shape.clone();
            let dx = cx.g.push(ConvDx { spec: self.spec.clone(), x }, &[d, w])?;
            cx.add(0, dx)?;
        }
        if cx.needs(1) {
            let w = cx.g.ty(w).shape.clone();
            let dw = cx.g.push(ConvDw { spec: self.spec.clone(), w }, &[d, x])?;
            cx.add(1, dw)?;
        }
        if self.bias && cx.needs(2) {
            let rank = cx.g.ty(d).shape.rank();
            let axes: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
            let db = cx.g.reduce(ReduceOp::Sum, d, &axes, false)?;
            cx.add(2, db)?;
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], outputs: &[Type]) -> Result<Dim> {
        count(2, outputs[0].shape.iter().chain(&inputs[1].shape[1..]))
    }
}

/// Gradient in the images: inputs `d_y`, `w`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvDx {
    /// As in [`Conv`].
    pub spec: ConvSpec,
    /// Shape of the images, which strides make less of than what `d_y` tells.
    pub x: Shape,
}

impl OpRule for ConvDx {
    fn name(&self) -> &'static str {
        "conv-dx"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), inputs)?;
        let y = self.spec.output(self.name(), &self.x, &inputs[1].shape, inputs)?;
        if inputs[0].shape != y {
            return Err(Error::shape(self.name(), format!("takes d_y {y} and w"), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, self.x.clone())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, w) = (cx.input(0), cx.input(1));
        let mut dx = Tensor::zeros(cx.shape(0)?);
        let shape = dx.shape.clone();
        self.spec.products(&shape, &w.shape, &dy.shape, |i, j, o| dx.data[i] += dy.data[o] * w.data[j]);
        Ok(vec![dx])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(2, inputs[0].shape.iter().chain(&inputs[1].shape[1..]))
    }
}

/// Gradient in the filters: inputs `d_y`, `x`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvDw {
    /// As in [`Conv`].
    pub spec: ConvSpec,
    /// Shape of the filters.
    pub w: Shape,
}

impl OpRule for ConvDw {
    fn name(&self) -> &'static str {
        "conv-dw"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        arity(self.name(), inputs, 2)?;
        floats(self.name(), inputs)?;
        let y = self.spec.output(self.name(), &inputs[1].shape, &self.w, inputs)?;
        if inputs[0].shape != y {
            return Err(Error::shape(self.name(), format!("takes d_y {y} and x"), inputs));
        }
        Ok(vec![Type::new(inputs[0].dtype, self.w.clone())])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let (dy, x) = (cx.input(0), cx.input(1));
        let mut dw = Tensor::zeros(cx.shape(0)?);
        let shape = dw.shape.clone();
        self.spec.products(&x.shape, &shape, &dy.shape, |i, j, o| dw.data[j] += dy.data[o] * x.data[i]);
        Ok(vec![dw])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        count(2, inputs[0].shape.iter().chain(&self.w[1..]))
    }
}
