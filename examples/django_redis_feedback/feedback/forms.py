# feedback/forms.py

from django import forms

from feedback.tasks import send_feedback_email


class FeedbackForm(forms.Form):
    email = forms.EmailField(label="E-mail address", widget=forms.EmailInput(attrs={"autocomplete": "email"}))
    message = forms.CharField(label="Message", widget=forms.Textarea(attrs={"rows": 5}))

    def send_email(self):
        send_feedback_email.delay(self.cleaned_data["email"], self.cleaned_data["message"])
