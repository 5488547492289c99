//! Convolutions over images and over sequences (images of height one): forward, and the gradients of both operands.
//!
//! Each is a matrix product per image and group, with the image unfolded (`unfold`) into one row for each weight of a filter:
//!
//! ```text
//! forward    y[o, p]  = w[o, q] unfolded[q, p]           q = (channel, row, column) of a weight, p = place in the output
//! input      dx       = fold(w^T[q, o] dy[o, p])
//! weight     dw[o, q] = sum over images of dy[o, p] unfolded^T[p, q]
//! ```
//!
//! The unfolded image is made while the product packs it and never exists whole; its gradient does, for as many channels at a time
//! as fit `FOLDED` values. Filters of one value need no unfolding. Tensors are `[batch, channels, height, width]` and weights
//! `[out, in / groups, height, width]`, as in PyTorch; what is padded is zero.
//!
//! Between many channels, at neighbouring places and in the matrix unit nothing is unfolded: an image is split once and read from another place
//! on for each weight of a filter (`shifted`, `weight`).
//!
//! Rejected: the same without the matrix unit, in 200 lines. 64 filters of 3 by 3 over 64 channels of 56 by 56 took 0.85 ms instead of 0.87,
//! longer sequences 10% more time.
//!
//! All outputs are overwritten. Error is that of [`crate::gemm`] over the values that an element sums; results are bitwise the same
//! for any number of threads.

#[cfg(test)]
mod scalar;
#[cfg(target_arch = "x86_64")]
mod shifted;
#[cfg(test)]
mod tests;
mod unfold;
#[cfg(target_arch = "x86_64")]
mod weight;

use crate::gemm::blocked::{Out, Sizes, blocked, run};
use crate::gemm::kernel::Epilogue;
use crate::gemm::pack::{GROUP, Panels};
use crate::gemm::scratch::with_scratch;
use crate::gemm::{MatRef, gemm};
use crate::lora::Second;
use crate::pool::{Disjoint, Pool};
#[cfg(target_arch = "x86_64")]
use shifted::Shifted;
use unfold::Taps;

/// Values of an unfolded gradient that exist at a time, unless those of one channel are more.
const FOLDED: usize = 1 << 20;

/// Computes planes of the output for a group, an image and a bias without a product of the unfolded image, or says that it does not.
type Direct<'a> = dyn Fn(usize, &[f32], Option<&[f32]>, Disjoint<'_, f32>) -> bool + Sync + 'a;

/// Sizes of a convolution; pairs are height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Images.
    pub batch: usize,
    /// Parts of the channels that see only each other; divides both numbers of channels.
    pub groups: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output, one for each filter.
    pub out_channels: usize,
    /// Size of an image.
    pub input: [usize; 2],
    /// Size of a filter.
    pub kernel: [usize; 2],
    /// Distance between places in the image.
    pub stride: [usize; 2],
    /// Zeros before the image.
    pub pad_lo: [usize; 2],
    /// Zeros after it.
    pub pad_hi: [usize; 2],
    /// Distance between weights of a filter in the image.
    pub dilation: [usize; 2],
}

impl Conv {
    /// Size of the output: the places where a filter lies within the padded image.
    ///
    /// # Panics
    /// When a size is zero that must not be, a filter is larger than the padded image, or groups do not divide the channels.
    #[track_caller]
    pub fn output(&self) -> [usize; 2] {
        assert!(self.groups > 0, "a convolution has at least one group");
        assert!(
            self.in_channels.is_multiple_of(self.groups) && self.out_channels.is_multiple_of(self.groups),
            "groups do not divide the channels"
        );
        [0, 1].map(|axis| {
            assert!(
                self.kernel[axis] > 0 && self.stride[axis] > 0 && self.dilation[axis] > 0,
                "empty filter, stride or dilation"
            );
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let padded = self.input[axis] + self.pad_lo[axis] + self.pad_hi[axis];
            assert!(reach <= padded, "a filter is larger than the padded image");
            (padded - reach) / self.stride[axis] + 1
        })
    }

    /// Elements of the input.
    pub fn x_len(&self) -> usize {
        self.batch * self.in_channels * self.input[0] * self.input[1]
    }

    /// Elements of the weight.
    pub fn w_len(&self) -> usize {
        self.out_channels * self.filter()
    }

    /// Elements of the output.
    pub fn y_len(&self) -> usize {
        self.batch * self.out_channels * self.places()
    }

    /// Weights of a filter.
    fn filter(&self) -> usize {
        self.in_channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Places in an output channel.
    fn places(&self) -> usize {
        let [high, wide] = self.output();
        high * wide
    }

    /// Whether unfolding changes nothing.
    fn is_plain(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pad_lo == [0, 0] && self.pad_hi == [0, 0]
    }

    /// Lengths of the operands' parts for one image and group: input, weight, output.
    fn parts(&self) -> [usize; 3] {
        let (inputs, outputs) = (self.in_channels / self.groups, self.out_channels / self.groups);
        [inputs * self.input[0] * self.input[1], outputs * self.filter(), outputs * self.places()]
    }

    #[track_caller]
    fn check(&self, x: usize, w: usize, y: usize) {
        assert_eq!(y, self.y_len(), "length of the output of a convolution");
        assert_eq!(x, self.x_len(), "length of the input of a convolution");
        assert_eq!(w, self.w_len(), "length of the weight of a convolution");
    }
}

/// `y = conv(x, w) + bias`; a bias has one value for each output channel.
///
/// # Panics
/// When the sizes are none of a convolution or a length does not match.
#[track_caller]
pub fn conv2d(pool: &Pool, conv: &Conv, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    conv.check(x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|bias| bias.len() == conv.out_channels), "bias does not match the output channels");
    let [x_len, w_len, y_len] = conv.parts();
    let places = conv.places();
    let sizes = Sizes { m: conv.out_channels / conv.groups, n: places, k: conv.filter() };
    if y_len == 0 {
        return;
    }
    let images = conv.batch * conv.groups;
    let (y, taps) = (Disjoint::new(y), Taps::new(conv));
    // A bias is a product of rank one with them, added to each tile.
    let ones = vec![1.0; if bias.is_some() { places.next_multiple_of(GROUP) } else { 0 }];
    let each = |direct: &Direct<'_>| {
        run(pool, images < 2 * pool.threads(), images, &|index| {
            let group = index % conv.groups;
            let out = y.after(index * y_len);
            let bias = bias.map(|bias| &bias[group * sizes.m..][..sizes.m]);
            if sizes.k == 0 {
                // SAFETY: each image and group has a part of the output to itself.
                let planes = unsafe { out.slice(0, y_len) }.chunks_exact_mut(places);
                return planes.enumerate().for_each(|(o, plane)| plane.fill(bias.map_or(0.0, |bias| bias[o])));
            }
            let image = &x[index * x_len..][..x_len];
            if direct(group, image, bias, out) {
                return;
            }
            let filters = MatRef::new(&w[group * w_len..][..w_len], sizes.k);
            let unfold = taps.of(image);
            let panels = if conv.is_plain() { Panels::Dense(MatRef::new(image, places)) } else { unfold.panels() };
            let epilogue = Epilogue { alpha: 1.0, beta: 0.0, bias: None, addend: None };
            let bias = bias.map(|bias| Second::new(1.0, 1, MatRef::new(bias, 1), &ones));
            blocked(pool, sizes, filters.into(), panels, Out::Plain(out, places), epilogue, bias.as_ref());
        })
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(shifted) = Shifted::forward(pool.isa(), conv) {
        return shifted.over(pool, w, each);
    }
    each(&|_, _, _, _| false);
}

/// Gradient of the input of [`conv2d`].
///
/// # Panics
/// When the sizes are none of a convolution or a length does not match.
#[track_caller]
pub fn conv2d_dx(pool: &Pool, conv: &Conv, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    conv.check(dx.len(), w.len(), dy.len());
    let [x_len, w_len, y_len] = conv.parts();
    let (places, plane) = (conv.places(), conv.input[0] * conv.input[1]);
    let (inputs, outputs) = (conv.in_channels / conv.groups, conv.out_channels / conv.groups);
    let (taps, meets) = (conv.kernel[0] * conv.kernel[1], Taps::new(conv));
    if x_len == 0 {
        return;
    }
    let images = conv.batch * conv.groups;
    let dx = Disjoint::new(dx);
    let each = |direct: &Direct<'_>| {
        run(pool, images < 2 * pool.threads(), images, &|index| {
            let (group, dy) = (index % conv.groups, &dy[index * y_len..][..y_len]);
            if direct(group, dy, None, dx.after(index * x_len)) {
                return;
            }
            let filters = MatRef::new(&w[group * w_len..][..w_len], inputs * taps);
            let dy = MatRef::new(dy, places);
            let channels = (FOLDED / (taps * places)).clamp(1, inputs);
            with_scratch(channels * taps * places, |unfolded| {
                for first in (0..inputs).step_by(channels) {
                    let count = channels.min(inputs - first);
                    let rows = &mut unfolded[..count * taps * places];
                    // Beyond the end only where there are no outputs, and then nothing is read.
                    let data = filters.data.get(first * taps..).unwrap_or_default();
                    let some = MatRef { data, ..filters }.transposed();
                    gemm(pool, count * taps, places, outputs, 1.0, some, dy, rows, places, 0.0);
                    let rows = &*rows;
                    pool.run(count, &|channel| {
                        // SAFETY: each channel of each image has a plane of its own.
                        let plane = unsafe { dx.slice(index * x_len + (first + channel) * plane, plane) };
                        meets.fold(&rows[channel * taps * places..][..taps * places], plane);
                    });
                }
            });
        })
    };
    #[cfg(target_arch = "x86_64")]
    if let Some(shifted) = Shifted::backward(pool.isa(), conv) {
        return shifted.over(pool, w, each);
    }
    each(&|_, _, _, _| false);
}

/// Gradient of the weight of [`conv2d`], summed over images in their order.
///
/// # Panics
/// When the sizes are none of a convolution or a length does not match.
#[track_caller]
pub fn conv2d_dw(pool: &Pool, conv: &Conv, dy: &[f32], x: &[f32], dw: &mut [f32]) {
    conv.check(x.len(), dw.len(), dy.len());
    let [x_len, w_len, y_len] = conv.parts();
    let places = conv.places();
    let sizes = Sizes { m: conv.out_channels / conv.groups, n: conv.filter(), k: places };
    if w_len == 0 || conv.batch == 0 {
        return dw.fill(0.0);
    }
    #[cfg(target_arch = "x86_64")]
    let weight = weight::Weight::new(pool.isa(), conv);
    let (dw, taps) = (Disjoint::new(dw), Taps::new(conv));
    run(pool, conv.groups < 2 * pool.threads(), conv.groups, &|group| {
        #[cfg(target_arch = "x86_64")]
        if let Some(weight) = &weight {
            let parts = |image: usize| {
                let index = image * conv.groups + group;
                (&dy[index * y_len..][..y_len], &x[index * x_len..][..x_len])
            };
            if weight.run(pool, parts, dw.after(group * w_len)) {
                return;
            }
        }
        for image in 0..conv.batch {
            let index = image * conv.groups + group;
            let dy = MatRef::new(&dy[index * y_len..][..y_len], places);
            let image_part = &x[index * x_len..][..x_len];
            let unfold = taps.of(image_part);
            let panels =
                if conv.is_plain() { Panels::Dense(MatRef::new(image_part, places).transposed()) } else { unfold.transposed() };
            let beta = f32::from(u8::from(image > 0));
            let out = Out::Plain(dw.after(group * w_len), sizes.n);
            let epilogue = Epilogue { alpha: 1.0, beta, bias: None, addend: None };
            blocked(pool, sizes, dy.into(), panels, out, epilogue, None);
        }
    });
}
