"""The two lists of words that VESL's second step uses.

Both are printed in CLOC's Listing 1 (arXiv 2410.02746, appendix C.1), after OWLv2's (Minderer et al. 2023, arXiv
2306.09683, appendix A.2), which took the stop-words from NLTK and chose the generic words by hand among the 1,000 most
common ones of alt-texts.
"""

_STOP = """
a about above after again against all am an and any are as at be because been before being below between both but
by can did do does doing don down during each few for from further had has have having he her here hers herself him
himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only or
other our ours ourselves out over own s same she should so some such t than that the their theirs them themselves
then there these they this those through to too under until up very was we were what when where which while who
whom why will with you your yours yourself yourselves
"""

_GENERIC = """
alibaba aliexpress amazon available background blog buy co com description diy download facebook free gif hd ideas
illustration illustrations image images img instagram jpg online org original page pdf photo photography photos
picclick picture pictures png porn premium resolution royalty sale sex shutterstock stock svg thumbnail tumblr
tumgir twitter uk uploaded vector vectors video videos wallpaper wallpapers wholesale www xxx youtube
"""

STOP_WORDS = frozenset(_STOP.split())
GENERIC_WORDS = frozenset(_GENERIC.split())
