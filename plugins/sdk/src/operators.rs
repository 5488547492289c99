//! `+ - * /` between values, parameters and numbers.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::bindings::swift::tensor::graph::BinaryOp;
use crate::{Param, Value};

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::number(number)
    }
}

impl From<&Value> for Value {
    fn from(value: &Value) -> Value {
        value.clone()
    }
}

impl From<Param> for Value {
    fn from(param: Param) -> Value {
        param.read()
    }
}

impl From<&Param> for Value {
    fn from(param: &Param) -> Value {
        param.read()
    }
}

macro_rules! operator {
    ($trait:ident $method:ident $op:ident: $($left:ty),*) => {
        $(impl<R: Into<Value>> $trait<R> for $left {
            type Output = Value;
            fn $method(self, right: R) -> Value {
                Value::from(self).binary(BinaryOp::$op, &right.into())
            }
        })*
    };
}

operator!(Add add Add: Value, &Value, Param, &Param);
operator!(Sub sub Sub: Value, &Value, Param, &Param);
operator!(Mul mul Mul: Value, &Value, Param, &Param);
operator!(Div div Div: Value, &Value, Param, &Param);

macro_rules! number_operator {
    ($($trait:ident $method:ident: $($right:ty),*;)*) => {
        $($(impl $trait<$right> for f64 {
            type Output = Value;
            fn $method(self, right: $right) -> Value {
                Value::from(self).$method(right)
            }
        })*)*
    };
}

number_operator! {
    Add add: Value, &Value;
    Sub sub: Value, &Value;
    Mul mul: Value, &Value;
    Div div: Value, &Value;
}

impl Neg for Value {
    type Output = Value;
    fn neg(self) -> Value {
        -&self
    }
}

impl Neg for &Value {
    type Output = Value;
    fn neg(self) -> Value {
        self.negated()
    }
}
