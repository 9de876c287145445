"""Short functions with tests, written for this example; programs run in megafuser's sandbox."""

import re
from typing import Any

from datasets import Dataset

from megafuser.harness.code import passes

# name(parameters), what it does, and expressions that must be true
FUNCTIONS = [
    ("add(a, b)", "Return the sum of a and b.", ["add(2, 3) == 5", "add(-1, 1) == 0"]),
    ("double(x)", "Return x times two.", ["double(4) == 8", "double(-3) == -6"]),
    ("square(x)", "Return the square of x.", ["square(5) == 25", "square(-2) == 4"]),
    ("is_even(n)", "Return True if n is even, else False.", ["is_even(4) is True", "is_even(7) is False"]),
    ("is_odd(n)", "Return True if n is odd, else False.", ["is_odd(4) is False", "is_odd(7) is True"]),
    ("absolute(x)", "Return the absolute value of x.", ["absolute(-3) == 3", "absolute(8) == 8"]),
    ("larger(a, b)", "Return the larger of a and b.", ["larger(2, 9) == 9", "larger(4, -4) == 4"]),
    ("smallest(numbers)", "Return the smallest number of a list.", ["smallest([3, 1, 2]) == 1", "smallest([5]) == 5"]),
    ("total(numbers)", "Return the sum of a list of numbers.", ["total([1, 2, 3]) == 6", "total([]) == 0"]),
    ("average(numbers)", "Return the mean of a list of numbers.", ["average([1, 2, 3]) == 2", "average([4, 6]) == 5"]),
    ("reverse(text)", "Return the string text reversed.", ["reverse('abc') == 'cba'", "reverse('') == ''"]),
    ("length(items)", "Return the number of items in a list.", ["length([1, 2]) == 2", "length([]) == 0"]),
    ("first(items)", "Return the first item of a list.", ["first([7, 8]) == 7", "first(['a']) == 'a'"]),
    ("last(items)", "Return the last item of a list.", ["last([7, 8]) == 8", "last(['a']) == 'a'"]),
    ("upper(text)", "Return text in upper case.", ["upper('ab') == 'AB'", "upper('C') == 'C'"]),
    ("count_vowels(text)", "Return how many vowels (a, e, i, o, u) text has.", ["count_vowels('banana') == 3"]),
    ("is_palindrome(text)", "Return True if text reads the same backwards, else False.",
     ["is_palindrome('abba') is True", "is_palindrome('abc') is False"]),
    ("factorial(n)", "Return n factorial.", ["factorial(5) == 120", "factorial(0) == 1"]),
    ("fibonacci(n)", "Return the nth Fibonacci number, where fibonacci(0) is 0 and fibonacci(1) is 1.",
     ["fibonacci(7) == 13", "fibonacci(0) == 0"]),
    ("is_prime(n)", "Return True if n is a prime number, else False.",
     ["is_prime(7) is True", "is_prime(9) is False", "is_prime(1) is False"]),
    ("unique(items)", "Return a sorted list of the distinct items.", ["unique([2, 1, 2]) == [1, 2]"]),
    ("evens(numbers)", "Return a list of the even numbers of a list.", ["evens([1, 2, 4]) == [2, 4]"]),
    ("squares(n)", "Return a list of the squares of the numbers from 1 to n.", ["squares(3) == [1, 4, 9]"]),
    ("join_words(words)", "Return the words of a list joined by single spaces.", ["join_words(['a', 'b']) == 'a b'"]),
    ("count_words(text)", "Return how many words text has.", ["count_words('one two  three') == 3"]),
    ("celsius(fahrenheit)", "Convert a temperature from Fahrenheit to Celsius.",
     ["celsius(212) == 100", "celsius(32) == 0"]),
    ("area(width, height)", "Return the area of a rectangle.", ["area(3, 4) == 12", "area(1, 0) == 0"]),
    ("power(base, exponent)", "Return base to the power of exponent.", ["power(2, 5) == 32", "power(3, 0) == 1"]),
    ("remainder(a, b)", "Return the remainder of a divided by b.", ["remainder(7, 3) == 1", "remainder(8, 4) == 0"]),
    ("contains(items, item)", "Return True if item is in the list items, else False.",
     ["contains([1, 2], 2) is True", "contains([1], 3) is False"]),
    ("digits(n)", "Return the sum of the digits of n.", ["digits(123) == 6", "digits(0) == 0"]),
    ("gcd(a, b)", "Return the greatest common divisor of a and b.", ["gcd(12, 18) == 6", "gcd(7, 5) == 1"]),
    # harder: two steps, or an edge to think of
    ("lcm(a, b)", "Return the least common multiple of a and b.", ["lcm(4, 6) == 12", "lcm(5, 7) == 35"]),
    ("second_largest(numbers)", "Return the second largest of the distinct numbers of a list.",
     ["second_largest([3, 9, 9, 5]) == 5", "second_largest([1, 2]) == 1"]),
    ("caesar(text, shift)", "Shift every lower-case letter of text by shift places, from z on to a; keep all else.",
     ["caesar('xyz', 3) == 'abc'", "caesar('a b!', 1) == 'b c!'"]),
    ("flatten(lists)", "Return the items of all lists of a list, in order, as one list.",
     ["flatten([[1], [2, 3], []]) == [1, 2, 3]", "flatten([]) == []"]),
    ("transpose(rows)", "Return the transpose of a matrix, which is a list of rows.",
     ["transpose([[1, 2], [3, 4], [5, 6]]) in ([[1, 3, 5], [2, 4, 6]], [(1, 3, 5), (2, 4, 6)])"]),
    ("most_common(items)", "Return the item that is in the list most often; of several, the first one.",
     ["most_common(['b', 'a', 'a', 'b', 'c']) == 'b'", "most_common([1, 2, 2]) == 2"]),
    ("run_lengths(text)", "Return a list of (character, count) for each run of equal characters of text.",
     ["run_lengths('aabccc') == [('a', 2), ('b', 1), ('c', 3)]", "run_lengths('') == []"]),
    ("to_binary(n)", "Return the binary digits of a whole number n, 0 or more, as a string, without a prefix.",
     ["to_binary(10) == '1010'", "to_binary(0) == '0'"]),
    ("is_balanced(text)", "Return True if every bracket of ()[]{} in text is closed by its like, in order, else False.",
     ["is_balanced('a(b[c]{})') is True", "is_balanced('([)]') is False", "is_balanced('(') is False"]),
    ("binary_search(numbers, target)", "Return the place of target in a sorted list without repeats, or -1.",
     ["binary_search([1, 3, 5, 8], 5) == 2", "binary_search([1, 3], 2) == -1", "binary_search([], 1) == -1"]),
    ("roman(n)", "Return a number from 1 to 3999 as a Roman numeral.",
     ["roman(4) == 'IV'", "roman(1994) == 'MCMXCIV'", "roman(58) == 'LVIII'"]),
    ("title_case(text)", "Return text with the first letter of each word in upper case and all others in lower case.",
     ["title_case('hELLO wORLD') == 'Hello World'", "title_case(\"it's\") == \"It's\""]),
]  # fmt: skip


def load(**_: Any) -> dict[str, Dataset]:
    """All of them."""
    records = []
    for signature, description, checks in FUNCTIONS:
        names = {"name": signature.split("(")[0], "signature": signature}
        records.append({**names, "description": f"def {signature}: {description}", "checks": checks})
    return {"test": Dataset.from_list(records)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer's function passes."""
    return {"pass@1": float(passes(program(doc, results[0])))}


def program(doc: dict[str, Any], answer: str) -> str:
    """The first fenced block of an answer, or all of it where it has none, with the checks behind it."""
    block = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL | re.IGNORECASE)
    checks = "\n".join(f"assert {check}" for check in doc["checks"])
    return f"{block[1] if block else answer}\n\n{checks}\n"
