from fractions import Fraction

from perdure_fraction import FractionSerializer

from perdure.conformance import SerializerConformance, SerializerSubject


class TestFraction(SerializerConformance):
    make = SerializerSubject(FractionSerializer, samples=[Fraction(-1, 3), [Fraction(2**90, 7), Fraction(0)]])
    level = "full"
