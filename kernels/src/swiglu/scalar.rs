//! Specification of SwiGLU.

pub(super) fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + (-gate).exp()) * up;
    }
}

pub(super) fn backward(gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    for i in 0..gate.len() {
        let sigmoid = 1.0 / (1.0 + (-gate[i]).exp());
        let silu = gate[i] * sigmoid;
        d_up[i] = d_out[i] * silu;
        d_gate[i] = d_out[i] * up[i] * (sigmoid + silu * (1.0 - sigmoid));
    }
}
