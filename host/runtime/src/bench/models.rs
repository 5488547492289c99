//! Cases that some models have and others not: convolutions and experts.

use swift_graph::op::{Conv, ConvDw, ConvDx, ConvSpec, GroupedLinear, GroupedLinearDx};
use swift_graph::{DType, Shape, Type};

use super::Bound;
use super::cases::{Build, Case, dims, sizes_text};
use crate::{CpuDevice, Format, HostTensor, Precision, Result};

/// A convolution: sizes of images `[batch, channels, ...]`, number of filters, their width and stride; padded so that images keep their size at
/// stride 1.
#[derive(Clone, Copy)]
struct Image {
    x: &'static [usize],
    filters: usize,
    width: usize,
    stride: usize,
}

/// A layer of a residual network, and the second layer of a speech encoder.
const IMAGES: [Image; 2] = [
    Image { x: &[8, 64, 56, 56], filters: 64, width: 3, stride: 1 },
    Image { x: &[4, 384, 3000], filters: 384, width: 3, stride: 2 },
];

/// Convolutions with both of their gradients.
pub(super) fn conv() -> Vec<Build> {
    let mut cases: Vec<Build> = Vec::new();
    for image in IMAGES {
        for op in ["conv", "conv-dx", "conv-dw"] {
            cases.push(Box::new(move |device| convolution(device, op, image)));
        }
    }
    cases
}

fn convolution(device: &CpuDevice, op: &str, image: Image) -> Result<Case> {
    let Image { x, filters, width, stride } = image;
    let axes = x.len() - 2;
    let all = |value: usize| vec![value as u64; axes];
    let pad = all(width / 2);
    let spec = ConvSpec { stride: all(stride), pad_lo: pad.clone(), pad_hi: pad, dilation: all(1), groups: 1 };
    let w = [&[filters, x[1]][..], &vec![width; axes]].concat();
    let out = [&[x[0], filters][..], &x[2..].iter().map(|size| (size - 1) / stride + 1).collect::<Vec<_>>()].concat();
    let flops = 2.0 * (out.iter().product::<usize>() * w[1..].iter().product::<usize>()) as f64;
    let shape = format!("{} k{width} s{stride}", sizes_text(x));
    let mut c = Case::new(device, op, shape, "F32", flops, Bound::Flops);
    let fixed = |sizes: &[usize]| Shape::from(dims(sizes));
    let result = match op {
        "conv" => {
            let (images, w) = (c.x(x)?, c.w(Format::F32, &w)?);
            c.graph.push(Conv { spec, bias: false }, &[images, w])?
        }
        "conv-dx" => {
            let (d_y, w) = (c.x(&out)?, c.w(Format::F32, &w)?);
            c.graph.push(ConvDx { spec, x: fixed(x) }, &[d_y, w])?
        }
        _ => {
            let (d_y, images) = (c.x(&out)?, c.x(x)?);
            c.graph.push(ConvDw { spec, w: fixed(&w) }, &[d_y, images])?
        }
    };
    c.keep(result)?;
    Ok(c)
}

/// Each of 512 rows through 2 of 8 experts, which are as large as a layer of a small model.
pub(super) fn experts() -> Vec<Build> {
    let mut cases: Vec<Build> = Vec::new();
    for format in [Format::F32, Format::Q4_0, Format::Q8_0] {
        for op in ["grouped-linear", "grouped-linear-dx"] {
            cases.push(Box::new(move |device| expert_layer(device, op, format)));
        }
        if format != Format::F32 {
            cases.push(Box::new(move |device| {
                let exact = expert_layer(device, "grouped-linear", format)?;
                Ok(Case { op: "grouped-linear-int8".into(), precision: Precision::Int8, bound: Bound::Int8, ..exact })
            }));
        }
    }
    cases
}

fn expert_layer(device: &CpuDevice, op: &str, format: Format) -> Result<Case> {
    let [n, chosen, count, k, out] = [512, 2, 8, 768, 2048];
    let shape = format!("{n}x{k}x{out} {chosen}/{count}");
    let flops = 2.0 * (n * chosen * k * out) as f64;
    let mut c = Case::new(device, op, shape, &format!("{format:?}"), flops, Bound::Flops);
    let w = c.w(format, &[count, out, k])?;
    // A row's second expert is never its first.
    let choice = (0..n * chosen).map(|i| ((i / 2 * 5 + i % 2 * 3) % count) as i32).collect();
    c.inputs.set("experts", HostTensor::i32([n, chosen], choice));
    let experts = c.graph.input("experts", Type::new(DType::S32, dims(&[n, chosen])))?;
    let y = match op {
        "grouped-linear" => {
            let x = c.x(&[n, k])?;
            c.graph.push(GroupedLinear, &[x, w, experts])?
        }
        _ => {
            let d_y = c.x(&[n, chosen, out])?;
            c.graph.push(GroupedLinearDx, &[d_y, w, experts])?
        }
    };
    c.keep(y)?;
    Ok(c)
}
