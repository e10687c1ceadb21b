from helpers.html_pages import Page

from vitkeras.io.html_page import Section, render


def test_text_is_escaped():
    page = Page(render("<b>", ["a & b"], [Section("<i>", "<u>", [('"q"', b"png")])]))
    for text in ("<b>", "a & b", "<i>", "<u>", '"q"'):
        assert text in page.text
    assert page.images[0][0] == '"q"'
