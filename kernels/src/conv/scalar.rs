//! Specification of the convolutions: the sums as they are written, in `f64`.

use super::Conv;

/// Calls `body` with the offsets into `x`, `w` and `y` of every product that there is, those of one output together.
fn products(conv: &Conv, mut body: impl FnMut(usize, usize, usize)) {
    let [high, wide] = conv.input;
    let [r_len, s_len] = conv.kernel;
    let [y_len, x_len] = conv.output();
    let (inputs, outputs) = (conv.in_channels / conv.groups, conv.out_channels / conv.groups);
    let place = |axis: usize, at: usize, tap: usize| {
        (at * conv.stride[axis] + tap * conv.dilation[axis]).checked_sub(conv.pad_lo[axis]).filter(|&i| i < conv.input[axis])
    };
    for image in 0..conv.batch {
        for o in 0..conv.out_channels {
            for y in 0..y_len {
                for x in 0..x_len {
                    for c in 0..inputs {
                        for r in 0..r_len {
                            for s in 0..s_len {
                                let (Some(i), Some(j)) = (place(0, y, r), place(1, x, s)) else { continue };
                                let channel = image * conv.in_channels + o / outputs * inputs + c;
                                body(
                                    (channel * high + i) * wide + j,
                                    ((o * inputs + c) * r_len + r) * s_len + s,
                                    ((image * conv.out_channels + o) * y_len + y) * x_len + x,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn forward(conv: &Conv, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let places = conv.places();
    let channel = |at: usize| at / places % conv.out_channels;
    let mut y: Vec<f64> = (0..conv.y_len()).map(|at| bias.map_or(0.0, |bias| f64::from(bias[channel(at)]))).collect();
    products(conv, |i, j, o| y[o] += f64::from(x[i]) * f64::from(w[j]));
    y
}

pub(super) fn d_x(conv: &Conv, dy: &[f32], w: &[f32]) -> Vec<f64> {
    let mut dx = vec![0.0; conv.x_len()];
    products(conv, |i, j, o| dx[i] += f64::from(dy[o]) * f64::from(w[j]));
    dx
}

pub(super) fn d_w(conv: &Conv, dy: &[f32], x: &[f32]) -> Vec<f64> {
    let mut dw = vec![0.0; conv.w_len()];
    products(conv, |i, j, o| dw[j] += f64::from(dy[o]) * f64::from(x[i]));
    dw
}
