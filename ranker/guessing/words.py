"""What the words of a column's name speak of: one vocabulary of English, German, French and some Spanish and Italian.

A name is cut into words at case, digits and signs, without accents. A word of the vocabulary with five letters or more
is also met at the end of another and with a common ending (`Ausleihdatum`, `clicked`), any one with an id's (`itemid`).
To teach a new word, write it behind its tag.
"""

import re
import unicodedata
from functools import cache
from itertools import pairwise

#: tag: words. A word may have several tags; what a column is, is decided with its values (`ranker.guessing.rules`)
VOCABULARY = {
    "user": """user users usr uid visitor customer cust client member viewer listener reader account person
        profile guest subscriber buyer shopper player learner patient traveller traveler consumer actor
        recipient student pupil rider passenger driver donor employee contact household cookie who
        author_of kunde nutzer benutzer besucher leser hoerer zuschauer kaeufer spieler mitglied
        utilisateur utilisatrice abonne visiteur lecteur auditeur acheteur spectateur usuario cliente
        utente membre""",
    "item": """item items iid product prod prd sku asin article doc document video movie film track song news
        story listing property prop hotel restaurant venue poi ad creative offer book isbn game course
        job post clip episode podcast photo image recipe content asset goods pin vacancy candidate pid
        vid what thing artikel produkt ware beitrag buch lied stueck angebot objekt spiel morceau oeuvre
        contenu produit annonce livre jeu recette chanson plat producto oferta empleo vacante pelicula
        cancion articulo prodotto articolo brano""",
    "time": """ts time timestamp date datetime at when zeit zeitpunkt zeitstempel datum uhrzeit horodatage
        heure instant quand moment fecha hora ora epoch unix created occurred logged""",
    "id": """id ids key nr no nummer number num code uuid guid hash token slug handle ref reference ident
        kennung cle identifiant login ausweis""",
    "naming": "id ids key login code uuid guid hash slug handle nr ref",
    "request": """request req query qid search srch impression impr list rid page_view pageview recommendation
        response slate auction trace anfrage suche abfrage liste requete recherche demande consulta
        busqueda""",
    "session": "session sess visit seance sitzung besuch visite sesion sessione sitting journey sid",
    "event": "event evt row record log message msg line evenement ereignis evento zeile ligne",
    "position": "position pos rank place slot ordinal platz rang stelle posicion posizione",
    "surface": """surface page screen tab placement module section widget canvas channel feed where zone area
        entry shelf carousel seite bereich kanal flaeche ecran rubrique emplacement pagina pantalla
        schermo""",
    "propensity": "propensity pscore probability prob ips",
    "propensity_sure": "propensity pscore",
    "organic": "organic organique organisch",
    "not_organic": "recommended recommande empfohlen recomendado personalized personalised is_rec",
    "calendar": """hour hr weekday dow day month week year date daypart stunde tag wochentag monat woche jahr datum
        heure jour mois semaine annee dia mes""",
    "rating": """rating rated stars star score vote grade mark label relevance review bewertung sterne note
        etoiles punkte avis puntuacion voto reaction thumb thumbs""",
    "act": """click clicked clk opened view viewed read watch watched listen listened play played like liked
        love loved favorite favourite fav heart save saved bookmark wish share shared forward comment
        follow subscribe cart basket purchase purchased buy bought order ordered book booked booking
        convert converted conversion conv rent rented download install apply applied reply signup lead
        accept accepted complete completed finished consumed used tapped swipe upvote reserve
        transaction addtocart checkout solicitud guardada geklickt angeklickt klick kauf gekauft
        bestellt gefaellt gemerkt gelesen gehoert gesehen gebucht aime achat achete clic clique favori
        partage partage_e vu lu ecoute ecoutee commande compra comprado clicado acquisto""",
    "refusal": """skip skipped hate dislike disliked hide hidden report reported block blocked bounce unfollow
        returned refund dismiss dismissed reject rejected unsubscribe downvote uebersprungen
        ausgeblendet passe passee masque rejete saute""",
    "amount": """dwell spent duration watch play listen ms sec secs seconds pct percent ratio completion progress
        scroll depth revenue gross gmv quantity qty pieces units amount total_paid paid payment spend
        count plays duree vues verweildauer verweil umsatz menge anzahl stueckzahl dauer ecoute ecoutee
        part quantite nombre montant cantidad importe""",
    "percent": "pct percent percentage prozent pourcent porcentaje",
    "shown": """since age freshness fee price prices rate cost fare nightly distance dist km miles score match
        discount promo promotion featured highlighted badge stock left delivery eta bm25 tfidf sim
        similarity relevance bid preis rabatt entfernung lagerbestand prix remise precio prezzo
        availability available sponsored predicted pred pctr pcvr logit destacada rankscore deal""",
    "asked": """device os browser platform app locale lang language query search term keyword geo city region
        country weather network connection referrer adults children rooms nights destination party
        filter geraet sprache land ort wetter suchbegriff appareil langue pays ville meteo dispositivo
        idioma pais""",
    "category": """type kind code category cat class group status brand zip plz postcode postal gender sex author
        artist channel genre chain level segment warengruppe kategorie marke categorie marque""",
    "prose": """title titles name names headline caption description summary body text subject plot titel name namen
        ueberschrift schlagzeile beschreibung titre titres nom noms resume titulo nombre descripcion titolo nome
        descrizione""",
    "total": """total totals count counts popularity avg average mean sum ctr overall reviews sold sales
        lifetime cumulative global trending""",
    "version": "version build release variant experiment exp bucket arm policy model algo algorithm treatment test",
    "elsewhen": """published publish release released upload uploaded birth born registered register joined updated
        modified expires expiry expire end ended closed clicked click bought installed veroeffentlicht
        publie parution geburt naissance""",
    "index": "index idx unnamed row rownum lfd",
    "private": "ip email mail firstname lastname address iban telefon adresse prenom useragent user_agent ipaddress",
}
#: what values of a column of text say of it, in words of its own
VALUES = {
    "device": """phone mobile desktop tablet tv web ios android handy pc computer telephone ordinateur tablette laptop
        windows mac macos linux iphone ipad smarttv console movil""",
    "surface": """home feed search related recommended foryou category detail cart checkout homepage startseite suche
        warenkorb accueil recherche inicio discover profile notification email sidebar footer header main trending""",
    "nothing": "view views viewed impression impressions show shown display seen exposure exposed pv",
}
_ENDINGS = r"(?:s|d|ed|es|e|en|n|in|ing|nr|nnr|nummer|nnummer|zeit|time)?"
#: of words of any length that are written together with it: `itemid`
_ID = r"(?:ids?|keys?|nr)"
#: words that say nothing of what a column is, names of objects around it among them
_FILLERS = "the of is was has raw anon anonymous internal main my a an event context contexte data payload"


def words_of(name: str) -> list[str]:
    """Return the words of a column's name, lower-case and without accents; `user_id:token` loses its type."""
    bare = name.partition(":")[0].replace("ß", "ss")
    bare = bare.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue").replace("Ä", "Ae").replace("Ü", "Ue")
    plain = unicodedata.normalize("NFKD", bare).encode("ascii", "ignore").decode()
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", plain)]


@cache
def _patterns() -> dict[str, tuple[frozenset[str], re.Pattern[str]]]:
    """Return for each tag its words, and what those of five letters and more look like with an ending."""
    found = {}
    for tag, text in VOCABULARY.items():
        words = frozenset(text.split())
        long = "|".join(sorted(word for word in words if len(word) >= 5))
        any_ = "|".join(sorted(word for word in words if len(word) >= 3))
        found[tag] = (words, re.compile(f"[a-z]*(?:{long or '(?!)'}){_ENDINGS}|(?:{any_ or '(?!)'}){_ID}"))
    return found


def _speaks(tag: str, word: str) -> bool:
    words, endings = _patterns()[tag]
    return word in words or endings.fullmatch(word) is not None


def speaks_of(name: str, tag: str) -> bool:
    """Return whether a word of the name, or two neighbours as one (`page_view`), has the tag."""
    words = words_of(name)
    return any(_speaks(tag, word) for word in [*words, *map("_".join, pairwise(words))])


def is_named(name: str, tag: str) -> bool:
    """Return whether the name says the tag and nothing else but that it is an id: `prop_key`, `visitor`, `KundenNr`."""
    if "." in name and not is_named(last := name.rpartition(".")[2], "id") and is_named(last, tag):
        return True  # an object's member, whatever the object is
    words = words_of(name)
    pairs = {half for one, two in pairwise(words) if _speaks(tag, f"{one}_{two}") for half in (one, two)}
    rest = [word for word in words if not (_speaks(tag, word) or word in pairs)]
    return len(rest) < len(words) and all(_speaks("id", word) or word in _FILLERS.split() for word in rest)
