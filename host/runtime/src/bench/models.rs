//! Cases that some models have and others not: convolutions, experts, and keys and values of earlier tokens.

use swift_graph::op::{AttentionSpec, CachedAttention, Conv, ConvDw, ConvDx, ConvSpec, GroupedLinear, GroupedLinearDx};
use swift_graph::{DType, Dim, Shape, Type};

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
    let shape = format!("{} {filters} of {width}, step {stride}", sizes_text(x));
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
    let shape = format!("{n}x{k}x{out}, {chosen} of {count}");
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

/// One token of each of 32 sequences over a cache, past the last-level cache in f32.
pub(super) fn decode() -> Vec<Build> {
    [DType::F32, DType::F16, DType::S8].map(|dtype| -> Build { Box::new(move |device| cached(device, dtype)) }).into()
}

fn cached(device: &CpuDevice, dtype: DType) -> Result<Case> {
    let [sequences, length, heads, kv_heads, d] = [32, 8192, 9, 3, 64];
    let page = CachedAttention::PAGE as usize;
    let columns = length / page;
    let values = (2 * sequences * length * kv_heads) as f64;
    let bytes = match dtype {
        DType::F32 => 4.0 * d as f64,
        DType::F16 => 2.0 * d as f64,
        // With the scale of a row.
        _ => d as f64 + 4.0,
    };
    let shape = format!("{sequences}x{length}, {heads}/{kv_heads}x{d}");
    let mut c = Case::new(device, "attention over a cache", shape, dtype.name(), values * bytes, Bound::Read);
    let state = |c: &mut Case, name: &str| {
        let shape = [sequences * columns, page, kv_heads, d].map(|size| Dim::fixed(size as u64));
        c.graph.declare_state(name, Type::f32(shape.to_vec()))
    };
    let (k_cache, v_cache) = (state(&mut c, "cache.k")?, state(&mut c, "cache.v")?);
    let (q, k, v) = (c.x(&[sequences, heads, d])?, c.x(&[sequences, kv_heads, d])?, c.x(&[sequences, kv_heads, d])?);
    let (slots, positions) = (c.whole(sequences, |i| i as i32)?, c.whole(sequences, |_| length as i32 - 1)?);
    // Pages of a sequence lie apart, as they do once sequences have come and gone.
    let table = (0..sequences * columns).map(|i| (i % columns * sequences + i / columns) as i32).collect();
    c.inputs.set("pages", HostTensor::i32([sequences, columns], table));
    let pages = c.graph.input("pages", Type::new(DType::S32, dims(&[sequences, columns])))?;
    let spec = AttentionSpec::causal((d as f64).powf(-0.5));
    let y = c.graph.push(CachedAttention { spec, k_cache, v_cache }, &[q, k, v, slots, positions, pages])?;
    c.keep(y)?;
    c.graph.set_cache_dtype(dtype)?;
    Ok(c)
}
