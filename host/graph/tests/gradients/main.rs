//! Every op's gradient against central finite differences, and what differentiation promises about whole graphs.

mod cases;
mod coverage;
mod harness;
mod model;

use harness::Case;

#[test]
fn gradients_match_finite_differences() {
    for (name, build) in cases::all() {
        let mut case = Case::new();
        let y = build(&mut case);
        case.check(name, y);
    }
}
