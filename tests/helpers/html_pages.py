"""Parses the HTML pages that commands write."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects text and images; checks that all tags are closed and attributes are harmless."""

    def __init__(self, text):
        super().__init__()
        self.images, self.text, self.open_tags = [], "", []
        self.feed(text)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):  # void elements
            self.open_tags.append(tag)
        attributes = dict(attrs)
        allowed = {"lang", "charset", "name", "content", "alt", "src", "class"}
        assert set(attributes) <= allowed, attributes
        if tag == "img":
            self.images.append((attributes["alt"], attributes["src"]))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text += data
