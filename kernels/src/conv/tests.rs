use super::*;
use crate::isa::Isa;
use crate::quant::tests::noise;

/// Shapes that differ in all that there is.
fn shapes() -> Vec<Conv> {
    let plain = Conv {
        batch: 1,
        groups: 1,
        in_channels: 3,
        out_channels: 5,
        input: [6, 7],
        kernel: [3, 3],
        stride: [1, 1],
        pad_lo: [1, 1],
        pad_hi: [1, 1],
        dilation: [1, 1],
    };
    let bare = Conv { pad_lo: [0, 0], pad_hi: [0, 0], ..plain };
    // Over a sequence, with as many zeros before it as after it.
    let sequence = |input, weights: usize, zeros| Conv {
        input: [1, input],
        kernel: [1, weights],
        pad_lo: [0, zeros],
        pad_hi: [0, zeros],
        ..plain
    };
    vec![
        plain,
        bare,
        Conv { batch: 5, stride: [2, 3], pad_lo: [2, 1], pad_hi: [2, 1], ..plain },
        Conv { dilation: [2, 3], pad_lo: [3, 2], pad_hi: [3, 2], ..plain },
        Conv { stride: [2, 1], pad_lo: [0, 2], pad_hi: [1, 0], ..plain },
        // Filters that see nothing but padding at some places.
        Conv { input: [2, 1], kernel: [3, 2], pad_lo: [4, 3], pad_hi: [4, 3], dilation: [2, 1], stride: [1, 2], ..plain },
        Conv { kernel: [1, 1], batch: 2, ..bare },
        Conv { kernel: [1, 1], stride: [2, 2], ..bare },
        Conv { groups: 3, in_channels: 6, out_channels: 9, batch: 2, ..plain },
        // Depthwise and causal over a sequence, as in state-space models.
        Conv { groups: 8, in_channels: 8, out_channels: 8, pad_hi: [0, 0], ..sequence(50, 4, 3) },
        Conv { in_channels: 20, out_channels: 40, stride: [1, 2], ..sequence(301, 5, 2) },
        Conv { in_channels: 16, out_channels: 33, input: [20, 24], batch: 3, ..plain },
        // Lines of the output as long as those of the image, at odd distances and with zeros on one side alone.
        Conv { dilation: [2, 2], pad_lo: [2, 4], pad_hi: [0, 0], ..plain },
        Conv { kernel: [2, 5], pad_lo: [5, 0], pad_hi: [1, 4], ..plain },
        // Filters far from each other, of which whole lines meet the image.
        Conv { kernel: [9, 8], stride: [4, 4], input: [30, 41], pad_lo: [3, 5], pad_hi: [2, 9], batch: 2, ..plain },
        Conv { in_channels: 0, ..plain },
        Conv { out_channels: 0, ..plain },
        Conv { batch: 0, ..plain },
    ]
}

fn assert_close(what: &str, got: &[f32], expected: &[f64], terms: usize) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let bound = 4e-6 * (terms as f64).sqrt() + 1e-6;
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*got) - expected).abs() <= bound, "{what}: element {i} is {got}, not {expected}");
    }
}

#[test]
fn all_shapes_match_the_specification() {
    for conv in shapes() {
        let (x, w) = (noise(conv.x_len() + 1, 1), noise(conv.w_len() + 1, 2));
        let (dy, bias) = (noise(conv.y_len() + 1, 3), noise(conv.out_channels, 4));
        // One element further than an allocation starts.
        let (x, w, dy) = (&x[1..], &w[1..], &dy[1..]);
        let taps = conv.filter().max(conv.batch * conv.places()).max(conv.out_channels * conv.kernel[0] * conv.kernel[1]);
        for isa in Isa::available() {
            let runs = [1, 2].map(|threads| {
                let pool = Pool::with_isa(threads, isa);
                let mut y = vec![f32::NAN; conv.y_len()];
                let mut plain = vec![f32::NAN; conv.y_len()];
                let mut dx = vec![f32::NAN; conv.x_len()];
                let mut dw = vec![f32::NAN; conv.w_len()];
                conv2d(&pool, &conv, x, w, Some(&bias), &mut y);
                conv2d(&pool, &conv, x, w, None, &mut plain);
                conv2d_dx(&pool, &conv, dy, w, &mut dx);
                conv2d_dw(&pool, &conv, dy, x, &mut dw);
                [y, plain, dx, dw]
            });
            let what = format!("{isa} {conv:?}");
            assert_eq!(runs[0], runs[1], "{what}: threads change the result");
            let [y, plain, dx, dw] = &runs[0];
            assert_close(&format!("{what} y"), y, &scalar::forward(&conv, x, w, Some(&bias)), taps);
            assert_close(&format!("{what} y without bias"), plain, &scalar::forward(&conv, x, w, None), taps);
            assert_close(&format!("{what} dx"), dx, &scalar::d_x(&conv, dy, w), taps);
            assert_close(&format!("{what} dw"), dw, &scalar::d_w(&conv, dy, x), taps);
        }
    }
}

#[test]
fn non_finite_values_stay_within_reach_of_the_filter() {
    let conv = shapes()[0];
    for isa in Isa::available() {
        let pool = Pool::with_isa(1, isa);
        let mut x = vec![0.0; conv.x_len()];
        x[0] = f32::NAN;
        x[5] = f32::INFINITY;
        let (w, mut y) = (vec![1.0; conv.w_len()], vec![0.0; conv.y_len()]);
        conv2d(&pool, &conv, &x, &w, None, &mut y);
        for (i, value) in y.iter().enumerate() {
            let (row, column) = (i / 7 % 6, i % 7);
            match (row < 2, column) {
                (true, 0 | 1) => assert!(value.is_nan(), "{isa} {i}"),
                (true, 4..=6) => assert_eq!(*value, f32::INFINITY, "{isa} {i}"),
                _ => assert_eq!(*value, 0.0, "{isa} {i}"),
            }
        }
    }
}

/// Some channels, or in the matrix unit some places, at a time.
#[test]
fn large_images_are_taken_in_parts() {
    let conv = Conv { in_channels: 9, input: [150, 150], out_channels: 2, ..shapes()[0] };
    let (x, w, dy) = (noise(conv.x_len(), 3), noise(conv.w_len(), 1), noise(conv.y_len(), 2));
    assert!(conv.in_channels * 9 * conv.places() > FOLDED);
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        conv2d(&pool, &conv, &x, &w, None, &mut y);
        assert_close("y", &y, &scalar::forward(&conv, &x, &w, None), 81);
        conv2d_dx(&pool, &conv, &dy, &w, &mut dx);
        assert_close("dx", &dx, &scalar::d_x(&conv, &dy, &w), 18);
        conv2d_dw(&pool, &conv, &dy, &x, &mut dw);
        assert_close("dw", &dw, &scalar::d_w(&conv, &dy, &x), conv.places());
    }
}

/// Channels of several tiles, whose last ones are not full.
#[test]
fn many_channels_meet_many() {
    let conv = Conv { in_channels: 70, out_channels: 45, input: [9, 21], batch: 2, ..shapes()[0] };
    let (x, w, dy) = (noise(conv.x_len(), 1), noise(conv.w_len(), 2), noise(conv.y_len(), 3));
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        conv2d(&pool, &conv, &x, &w, None, &mut y);
        assert_close("y", &y, &scalar::forward(&conv, &x, &w, None), conv.filter());
        conv2d_dx(&pool, &conv, &dy, &w, &mut dx);
        assert_close("dx", &dx, &scalar::d_x(&conv, &dy, &w), 9 * conv.out_channels);
        conv2d_dw(&pool, &conv, &dy, &x, &mut dw);
        assert_close("dw", &dw, &scalar::d_w(&conv, &dy, &x), 2 * conv.places());
    }
}

/// One number that is not finite, wherever it is, is where it would be in sums of products.
#[test]
fn a_nan_reaches_what_it_is_multiplied_into() {
    let conv = Conv { batch: 2, ..shapes()[0] };
    let all = |len| vec![1.0f32; len];
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        for (bad_x, bad_w, bad_dy) in [(true, false, false), (false, true, false), (false, false, true)] {
            let [mut x, mut w, mut dy] = [all(conv.x_len()), all(conv.w_len()), all(conv.y_len())];
            // In the second image, in a filter's middle, and in the second image's second channel.
            let places = [(bad_x, &mut x, conv.x_len() / 2 + 10), (bad_w, &mut w, 4), (bad_dy, &mut dy, conv.y_len() / 2 + 50)];
            places.into_iter().filter(|(bad, ..)| *bad).for_each(|(_, values, at)| values[at] = f32::NAN);
            let [mut y, mut dx, mut dw] = [all(conv.y_len()), all(conv.x_len()), all(conv.w_len())];
            conv2d(&pool, &conv, &x, &w, None, &mut y);
            conv2d_dx(&pool, &conv, &dy, &w, &mut dx);
            conv2d_dw(&pool, &conv, &dy, &x, &mut dw);
            let same = |got: &[f32], want: &[f64]| got.iter().zip(want).all(|(got, want)| got.is_nan() == want.is_nan());
            assert!(same(&y, &scalar::forward(&conv, &x, &w, None)), "{isa} y");
            assert!(same(&dx, &scalar::d_x(&conv, &dy, &w)), "{isa} dx");
            assert!(same(&dw, &scalar::d_w(&conv, &dy, &x)), "{isa} dw");
        }
    }
}

#[test]
#[should_panic(expected = "a filter is larger than the padded image")]
fn filters_larger_than_the_image_are_refused() {
    Conv { input: [2, 9], ..shapes()[1] }.output();
}

#[test]
#[should_panic(expected = "length of the weight")]
fn short_weights_are_refused() {
    let conv = shapes()[0];
    let (x, w, mut y) = (vec![0.0; conv.x_len()], vec![0.0; 3], vec![0.0; conv.y_len()]);
    conv2d(&Pool::new(1), &conv, &x, &w, None, &mut y);
}
