//! Convolutions and their gradients. One spatial axis is two, of which the first has one place.

use swift_graph::op::{Conv as ConvOp, ConvDw, ConvDx, ConvSpec};
use swift_kernels::conv::{Conv as Sizes, conv2d, conv2d_dw, conv2d_dx};

use super::Kernel;
use super::memory::{Memory, Ref};
use super::prepare::Prepare;
use crate::Result;

/// `y = conv(x, w) + bias`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    sizes: Sizes,
    x: Ref,
    w: Ref,
    bias: Option<Ref>,
    y: Ref,
}

impl Conv {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let bias = self.bias.map(|bias| m.f32(bias));
        conv2d(m.pool, &self.sizes, m.f32(self.x), m.f32(self.w), bias, m.f32_mut(self.y));
        Ok(())
    }
}

/// The gradient in the images, or in the filters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvGradient {
    sizes: Sizes,
    of_filters: bool,
    d_y: Ref,
    /// Filters where the gradient is that of images, and images where it is that of filters.
    other: Ref,
    out: Ref,
}

impl ConvGradient {
    pub(super) fn run(&self, m: &Memory<'_>) -> Result<()> {
        let kernel = if self.of_filters { conv2d_dw } else { conv2d_dx };
        kernel(m.pool, &self.sizes, m.f32(self.d_y), m.f32(self.other), m.f32_mut(self.out));
        Ok(())
    }
}

/// Sizes of the convolution of images `x` with filters `w`.
fn sizes(spec: &ConvSpec, x: &[usize], w: &[usize], p: &Prepare<'_, '_>) -> Result<Sizes> {
    let pair = |values: &[u64], one: usize| match values {
        [high, wide] => [*high as usize, *wide as usize],
        [wide] => [one, *wide as usize],
        _ => [one, one],
    };
    let axes = |shape: &[usize]| if let [_, _, high, wide] = shape { [*high, *wide] } else { [1, shape[2]] };
    let sizes = Sizes {
        batch: x[0],
        groups: spec.groups as usize,
        in_channels: x[1],
        out_channels: w[0],
        input: axes(x),
        kernel: axes(w),
        stride: pair(&spec.stride, 1),
        pad_lo: pair(&spec.pad_lo, 0),
        pad_hi: pair(&spec.pad_hi, 0),
        dilation: pair(&spec.dilation, 1),
    };
    for axis in 0..2 {
        let reach = sizes.dilation[axis] * (sizes.kernel[axis] - 1) + 1;
        let padded = sizes.input[axis] + sizes.pad_lo[axis] + sizes.pad_hi[axis];
        if reach > padded {
            return Err(p.unsupported(format!("a filter reaches over {reach} values, the padded image has {padded}")));
        }
    }
    Ok(sizes)
}

pub(super) fn forward(op: &ConvOp, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let sizes = sizes(&op.spec, &p.dims(0)?, &p.dims(1)?, p)?;
    let (x, w) = (p.input(0)?, p.input(1)?);
    let bias = if op.bias { Some(p.input(2)?) } else { None };
    Ok(Kernel::Conv(Conv { sizes, x, w, bias, y: p.output(0)? }))
}

pub(super) fn dx(op: &ConvDx, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let sizes = sizes(&op.spec, &p.out_dims(0)?, &p.dims(1)?, p)?;
    let (d_y, other, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::ConvGradient(ConvGradient { sizes, of_filters: false, d_y, other, out }))
}

pub(super) fn dw(op: &ConvDw, p: &mut Prepare<'_, '_>) -> Result<Kernel> {
    let sizes = sizes(&op.spec, &p.dims(1)?, &p.out_dims(0)?, p)?;
    let (d_y, other, out) = (p.input(0)?, p.input(1)?, p.output(0)?);
    Ok(Kernel::ConvGradient(ConvGradient { sizes, of_filters: true, d_y, other, out }))
}
